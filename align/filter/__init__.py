"""`align filter`: which pairs are kept, and why the others are not.

Each shard is measured by itself (`measure`, `network`), SQL over all shards decides (`tables`, `decide`), and the rules
are conditions of that SQL (`rules`). What a rule needs to know of a pair comes in, and so does a rule. Nothing is
fetched here and no bytes of pictures are written; what a text or a picture is by itself is in `pairs/`.
"""
