"""This package holds what a run needs: its folder, the training loop, checkpoints, weights and signals."""
