"""The work of search_architecture.py."""
