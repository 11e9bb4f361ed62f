"""The stage `ingest`: from a source of pairs to data/raw, and `align pin`, which lists a source.

`partition` gives each pair its shard, `fetching` gets each picture once, `writer` writes. The kinds of sources are in
`sources/`, the downloader is in `download/`. What brings a pair onto the disk comes in. Which pairs are kept is the
filter's to say: a pair without a picture stays a row.
"""
