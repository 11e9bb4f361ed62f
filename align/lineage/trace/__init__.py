"""Trace: the chain of everything, both ways, from a web page to the champion and back.

trace          the verb `align trace`: from a version or a run back to pages, and on to aliases
subject        what its words name
sections       the answer: a list of sections in the order of the chain
pairs          from pairs on to shards, models and index
data           sections of the data, at one revision
models         sections of what MLflow knows, and of the index
pair_history   what data/raw and data/filtered say of one pair; `align serve` shows it, too
show           prints the sections, as text and as a page

What follows a link of the chain comes in. What only reads a version of the data is in `versions`, the one room of
lineage that this one knows.
"""
