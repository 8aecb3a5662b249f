"""This package does the work of make_truth.py."""
