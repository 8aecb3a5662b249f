"""This package holds general tools for torch, files and runs; it knows nothing of this field's networks."""
