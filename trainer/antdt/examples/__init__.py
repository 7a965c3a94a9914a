"""Training scripts that the demo runs; each is a plain PyTorch loop with two calls of antdt in it."""
