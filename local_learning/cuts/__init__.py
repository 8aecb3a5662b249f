"""Where to cut a chain, when no search decides it."""
