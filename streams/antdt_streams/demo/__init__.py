"""`antdt demo`: the same job twice on a real broker, without and with mitigation."""
