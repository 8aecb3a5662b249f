"""Data sets: where images come from, how they become batches, and how they are varied."""
