"""Files that are written whole, and notes of where they come from."""
