"""Processes, files and locks of one machine. Knows nothing of antdt."""
