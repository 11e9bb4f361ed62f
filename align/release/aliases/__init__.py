"""How the alias `champion` moves: a lock, one entry in the history, then the alias.

Whatever moves the champion comes in, and nothing else of this project moves it. Whether it should move is decided
in `promotion/`, or by the person who rolls back.
"""
