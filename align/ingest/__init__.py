"""The stage `ingest`: from a source of pairs to data/raw.

`partition` gives each pair its shard, `groups` asks the web by host for what `earlier` does not know, `fetching` puts
each picture into its shard, `writer` writes. The kinds of sources are in
`sources/`, the downloader is in `download/`. What brings a pair onto the disk comes in. Which pairs are kept is the
filter's to say: a pair without a picture stays a row.
"""
