"""This package trains a chosen network to its final weights, exports it, and predicts with it."""
