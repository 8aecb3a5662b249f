"""Chains, cuts and heads: networks as ordered layers, and training them in pieces."""
