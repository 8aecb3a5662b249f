"""Cuts of a chain can be chosen without a search."""
