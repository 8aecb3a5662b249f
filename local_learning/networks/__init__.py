"""The networks of the papers, and timm models made into chains."""
