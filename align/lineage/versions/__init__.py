"""Versions: what git and DVC have of the data, now and before, and which models saw it.

data_versions   recorded versions of a checkout's data: their files, and how to remove them
stage_runs      what a dvc.lock or the run cache says of one run of a stage
data_chain      the files of one version of the data, from data/raw to data/shards
raw_pairs       pairs of data/raw: by key, address or picture, or one after another
shard_samples   what data/shards, data/index and data/filtered hold, without a picture
who_saw         which model versions and runs saw given pairs

What answers a question about a version for more than one room belongs here. It prints nothing and knows no other room
of lineage.
"""
