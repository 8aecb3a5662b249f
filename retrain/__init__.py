"""Training a chosen network to its final weights."""
