"""This package does the work of rank_report.py."""
