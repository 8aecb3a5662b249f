"""This package decides which processes train which blocks, and forecasts how fast that will be."""
