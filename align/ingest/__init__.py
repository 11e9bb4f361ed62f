"""The stage `ingest`: plans all pairs, fetches each picture once, writes shards, retries temporary failures."""
