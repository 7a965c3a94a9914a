"""Checkpoints: the files of a model, and what of them a job goes on from."""
