"""How the alias `champion` moves: one entry in the history, then the alias."""
