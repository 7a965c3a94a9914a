"""Rows of state, on a disk and in snapshots. The one place that knows RocksDB."""
