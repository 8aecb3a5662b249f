"""The work of train_supernet.py."""
