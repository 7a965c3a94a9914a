"""The wire contract of antdt: records, topics, codec. Imports neither streams nor trainer."""
