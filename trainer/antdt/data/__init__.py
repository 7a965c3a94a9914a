"""Samples: which there are, in which order, and who loads them."""
