"""`align filter`: measure each shard, decide by SQL over all shards, and report."""
