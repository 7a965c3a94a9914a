"""The ledger as a pure state machine: state, decisions, and the fold of its log. No clock, no broker, no store."""
