"""The Monitor: reads step timings, writes what is known about every node."""
