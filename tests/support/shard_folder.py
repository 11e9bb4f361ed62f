"""A data/shards of samples that the test chooses, written by what `align shard` uses."""

import tempfile
from pathlib import Path

from align.formats.shards import SPLITS
from align.shard.writer import join_manifest, write_entry, write_shard


def write_shards(folder, tars, *, image_px):
    """Writes the tars of each split (one that is not given is empty) and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        entries = {split: [] for split in SPLITS}
        for split, of_split in tars.items():
            for number, samples in enumerate(of_split):
                shard = write_shard(folder, f"{split}/{number:05d}.tar", samples)
                entries[split].append(Path(name) / f"{split}-{number:05d}.json")
                write_entry(shard, entries[split][-1])
        return join_manifest(folder, image_px, entries)
