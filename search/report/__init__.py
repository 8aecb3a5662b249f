"""The work of rank_report.py."""
