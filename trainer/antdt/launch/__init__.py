"""`antdt launch`: the workers of one machine."""
