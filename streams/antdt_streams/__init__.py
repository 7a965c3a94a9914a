"""Ledger, Monitor and Controller: the stream processors of antdt, and its command line."""
