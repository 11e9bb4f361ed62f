"""What an image/alt-text pair is, where it comes from, and which ones we keep.

What every stage shares lies here: texts, pictures, addresses, the policy. The rest lies in folders: `sources` (where
pairs come from), `formats` (data/raw and data/shards on disk), and one for each stage or command, under its name.
"""
