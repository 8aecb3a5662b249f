"""This package does the work of export_model.py."""
