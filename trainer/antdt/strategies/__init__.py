"""Ways to train together."""
