"""This package runs several scripts one after the other as one piece of work."""
