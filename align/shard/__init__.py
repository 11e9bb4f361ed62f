"""The stage `shard`: kept pairs become training shards, split by cluster.

`assignment` decides once which image goes where, `gather` reads and resizes it, `writer` writes tars and the manifest.
What places or writes kept pairs comes in. Which pairs are kept is known before, and in which order training reads them
is decided in `training/batches`.
"""
