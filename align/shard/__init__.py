"""The stage `shard`: kept pairs become training shards, split by cluster.

`plan` decides once, in SQL, which image goes where, by `clusters`; `gather` reads and resizes it, `writer` writes tars
and the manifest.
What places or writes kept pairs comes in. Which pairs are kept is known before, and in which order training reads them
is decided in `training/batches`.
"""
