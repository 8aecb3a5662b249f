"""This package does the work of predict_images.py."""
