"""Supernets: networks that share weights over a space of choices, and how to train them."""
