"""The stage `ingest`: from a source of pairs to data/raw. What brings a pair onto the disk comes in.

Its concepts, in the order of work:

source      reads files of one kind: what pairs they name (a candidate each), and which responses an archive holds
scan        both tables, and the counts, of each file of the source (`scan`)
before      what the data/raw before has of an address, read like an archive (`sources.raw_before`)
plan        a row for each pair: its shard, and where its picture is; sorted by shard (`plan`)
lane        shards that one task writes in turn; a host is in one lane, unless it is divided (`plan`, `lanes`)
ask         an address that the web is asked for, and the redirects that have led there (`download`)
host        has a queue, limits, rules of its robots.txt, and times at which it may be asked (`download`)
spool       bytes on disk between the order in which they come and that in which they are written (`spool`)
outcome     what became of a picture: a status, a reason, a size, a sha256 (`examination`)
moved       pairs whose redirect leads to a host that their shard does not ask: the next round plans them (`writing`)
shard       a tar, a table and counts (`writer`); all of them and the manifest are data/raw (`lanes.publish`)
ending      what the command says, and how its result is kept (`ending`, `report`)

Which pairs are kept is the filter's to say: a pair without a picture stays a row.
"""
