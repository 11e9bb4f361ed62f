"""data/shards of one-coloured pictures: what search should find is plain to see."""

from __future__ import annotations

from pathlib import Path

from align.formats.shards import Manifest, Sample, Split, digest_of, write_manifest
from align.shard.writer import write_shard
from tests.support.colours import COLOURS, square


def write(root: Path, *, image_px: int = 48) -> Path:
    """Writes three shades of each colour: two in train, one in test, none in val. Returns the folder."""
    samples: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for number, (colour, shade) in enumerate((name, shade) for name in COLOURS for shade in (0, 20, 40)):
        key = f"{number:09d}"
        image = square(colour, shade=shade, side_px=image_px)
        sample = Sample(key, f"id-{key}", image, (key,), (f"a {colour} square", f"{colour} shade {shade}"))
        samples["test" if shade == 40 else "train"].append(sample)
    splits = {}
    for name, of_split in samples.items():
        tars = [write_shard(root, f"{name}/00000.tar", of_split)] if of_split else []
        splits[name] = Split(num_images=len(of_split), num_pairs=2 * len(of_split), shards=tuple(tars))
    digest = digest_of(tar for split in splits.values() for tar in split.shards)
    write_manifest(Manifest(image_px=image_px, digest=digest, splits=splits), root)
    return root
