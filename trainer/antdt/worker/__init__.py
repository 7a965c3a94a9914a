"""The life of one worker as machines without clock, thread, tensor and broker, and its sessions with the ledger."""
