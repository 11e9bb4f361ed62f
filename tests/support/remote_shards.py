"""Shards whose tars are in an object store only."""

from align.formats.shards import read_manifest
from align.services.s3.store import keep_tar
from tests.support import local_store


def store_config(server, root):
    """Section `store` for a new bucket `shards` of the server."""
    bucket = server.make_bucket("shards")
    changes = {"num_retries": 5, "timeout_s": 10.0}
    return local_store.config(root, objects=f"s3://{bucket}/objects", **changes)


def move_tars(shards, config):
    """Moves the tars to the store, as `align shard` does; the manifest stays."""
    for split in read_manifest(shards).splits.values():
        for row in split.shards:
            keep_tar(shards / row.path, row.sha256, config)
    assert not list(shards.rglob("*.tar"))
