"""Networks as chains of layers, where to cut them, and how to train the blocks between the cuts."""
