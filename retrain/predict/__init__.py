"""The work of predict_images.py."""
