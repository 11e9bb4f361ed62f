"""How `align filter` works: measure each shard, decide by SQL over all of them, and report."""
