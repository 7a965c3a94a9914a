"""Which values of a script all samples of its batch are in, although no graph says it."""
