"""Rules turn a batch into updates of a network's blocks."""
