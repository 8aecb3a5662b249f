"""The one network, or the space of networks, that a script works on, and their files."""
