"""Trace: the chain of everything, both ways, from a web page to the champion and back.

trace          the verb `align trace`: from a version, a run or a shard back to pages, and on to aliases
subject        what its words name
graph          the chain, as nodes and edges
pairs          from pairs on to shards, models and index
data           the half of the chain that is data
models         the half that MLflow knows, and the index
pair_history   everything known of one pair; `align serve` shows it, too
text           the chain in words
page           the chain as a page
version_pages  such a page for each version whose alias moves

What follows a link of the chain comes in. What only reads a version of the data, or a run, is in `versions` and `runs`,
the two rooms of lineage that this one knows.
"""
