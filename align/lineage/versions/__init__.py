"""Versions: what git, DVC and MLflow have of the data, now and before, and which models saw it.

at_revision     the files of the checkout, or of a git revision by its dvc.lock
registered      what MLflow knows of a model: versions, aliases, runs
raw_pairs       pairs of data/raw: by key, address or picture, or one after another
shard_samples   what data/shards holds, without a picture
who_saw         which model versions and runs saw given pairs

What answers a question about a version for more than one room belongs here. It prints nothing and knows no other room
of lineage.
"""
