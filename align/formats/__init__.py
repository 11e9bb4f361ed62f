"""What data/raw and data/shards look like on disk: read here, written by the stages `ingest` and `shard`."""
