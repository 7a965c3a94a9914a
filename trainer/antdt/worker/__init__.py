"""The life of one worker: its sessions with the ledger, its membership, what is known of it."""
