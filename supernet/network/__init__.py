"""The network, or the space of networks, that a script works on, and the files of both."""
