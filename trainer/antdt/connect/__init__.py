"""How a worker reaches its ledger."""
