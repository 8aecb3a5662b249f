"""The work of export_model.py."""
