"""Faults on purpose: a seeded schedule over a run of real processes; the log and the workers' records judge."""
