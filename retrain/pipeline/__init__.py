"""Blocks on processes of their own."""
