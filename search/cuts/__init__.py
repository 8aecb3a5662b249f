"""The work of search_decoupling.py."""
