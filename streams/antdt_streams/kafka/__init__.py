"""Topics as this project uses them: their settings, rights, readers, and questions to a ledger."""
