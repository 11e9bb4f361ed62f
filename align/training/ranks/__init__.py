"""One process or several: how ranks start and end, and what they tell each other, whole or in shards.

In come tensors and plain values; out come the same on other ranks. What a batch or a loss is has no place here.
"""
