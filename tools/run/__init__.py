"""What a run needs while it works: its folder, the loop, processes that agree, checkpoints, weights."""
