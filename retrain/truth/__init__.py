"""The work of make_truth.py."""
