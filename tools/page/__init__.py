"""This package writes reports as single HTML files and sets the look of their figures."""
