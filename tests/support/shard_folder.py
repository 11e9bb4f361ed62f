"""A data/shards of samples that the test chooses, written by what `align shard` uses."""

from align.formats.shards import SPLITS
from align.shard.writer import write_manifest, write_shard


def write_shards(folder, tars, *, image_px):
    """Writes the tars of each split (one that is not given is empty) and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = {
        split: [
            write_shard(folder, f"{split}/{number:05d}.tar", samples)
            for number, samples in enumerate(tars.get(split, ()))
        ]
        for split in SPLITS
    }
    return write_manifest(folder, image_px, shards)
