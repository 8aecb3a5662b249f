"""Searches for architectures and for decouplings."""
