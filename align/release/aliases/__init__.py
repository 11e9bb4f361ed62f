"""How the alias `champion` moves: a lock, the alias, then one entry in the history.

Whatever moves the champion comes in, and nothing else of this project moves it. Whether it should move is decided
in `promotion/`, or by the person who rolls back.
"""
