"""Heads are made of the network's own later layers: which layers, how narrow, with which weights."""
