"""The ground floor: torch and files, nothing of this field's networks."""
