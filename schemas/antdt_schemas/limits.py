"""Names and numbers that trainers and ledger must have alike, and that no record carries."""

from __future__ import annotations

INIT_FILE = "init"  # the model before any step, as a grant names it
CHECKPOINTS_KEPT = 4  # by the ledger, newest first: what is older is never restored again
