"""Measurements of the project, each with the command that repeats it."""
