"""This package trains the blocks of one network on processes of their own."""
