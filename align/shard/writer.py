"""Writes data/shards: tars and indexes as `align.formats.shards` describes them, and their manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from align.durable.files import replaced, sha256_file, write_bytes, write_text
from align.formats.shards import MANIFEST, Manifest, Sample, Shard, Split, SplitName, digest_of, index_bytes
from align.formats.tar import TarWriter


def write_shard(directory: Path, path: str, samples: Iterable[Sample]) -> Shard:
    """Writes one tar and then its index, each whole or not at all; `path` is relative to the manifest's folder."""
    offsets, num_pairs, target = list[tuple[int, int, int, int]](), 0, directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as beside:
        with beside.open("wb") as file:
            tar = TarWriter(file, mode=0o444)  # equal samples give equal bytes: no time, no owner
            for one in samples:
                key, info = one.key, _json(one)
                at = tar.add((f"{key}.jpg", one.image), (f"{key}.json", info), (f"{key}.txt", one.texts[0].encode()))
                offsets.append((at[0], len(one.image), at[1], len(info)))
                num_pairs += len(one.texts)
            tar.close()
        sha256 = sha256_file(beside)
    index = index_bytes(offsets)
    shard = Shard(
        path=path, sha256=sha256, num_bytes=target.stat().st_size, num_images=len(offsets), num_pairs=num_pairs,
        offsets_sha256=hashlib.sha256(index).hexdigest(),
    )  # fmt: skip
    write_bytes(directory / shard.offsets_path, index)
    return shard


def _json(sample: Sample) -> bytes:
    row = {"key": sample.key, "image_id": sample.image_id, "keys": sample.keys, "texts": sample.texts}
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode()


def write_manifest(folder: Path, image_px: int, shards: Mapping[SplitName, Sequence[Shard]]) -> Manifest:
    """Writes `manifest.json` of the shards of each split, with images of `image_px` squared."""
    splits = {name: Split.of(rows) for name, rows in shards.items()}
    digest = digest_of(shard for split in splits.values() for shard in split.shards)
    manifest = Manifest(image_px=image_px, digest=digest, splits=splits)
    write_text(folder / MANIFEST, manifest.model_dump_json(exclude_none=True) + "\n")
    return manifest
