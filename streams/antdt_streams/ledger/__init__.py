"""The Stateful Dynamic Data Sharding service: single writer of the shard log."""
