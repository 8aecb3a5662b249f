"""This package parses, checks and explains the options of every script, and loads a user's own parts."""
