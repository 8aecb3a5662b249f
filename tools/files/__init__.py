"""This package writes files that are always whole, and records where results come from."""
