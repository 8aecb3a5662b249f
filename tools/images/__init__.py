"""This package reads data sets, makes batches of their images, and augments them."""
