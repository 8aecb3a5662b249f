"""Which process gets which blocks, and how fast that will be."""
