"""A run while it works: what its parts share, the commands that it starts, its record, and how it ends.

Nothing here knows what a run works on: neither its stages nor where it works.
"""
