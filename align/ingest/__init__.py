"""How `align ingest` works: plan every pair, fetch each picture once, write shards, retry what failed for a while."""
