"""shard: kept pairs -> data/shards/{train,val,test}, one tar sample an image, split by cluster and shuffled by seed.

Images are resized to `image_px` square without keeping the aspect, as the paper does (section 4.1; there 346 px), by an
antialiased bilinear filter; transparency becomes white. Decisions of ours, the paper being silent: JPEG as the stored
form, the split by cluster, and that a cluster larger than `max_cluster_share` goes to train whole, since held out it
would swallow the split.

Memory holds one row per kept pair and a few images. Raw tars are read once, in their order, into a spool of resized
images beside the output; from there the shards are written in shuffled order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from align.config import Params
from align.config.paths import PathsConfig
from align.config.shard import ShardConfig
from align.errors import DataError, GateError
from align.pairs.clusters import cluster
from align.pairs.layout import iter_images, raw_shards
from align.pairs.picture import PictureError, decode
from align.pairs.shards import SPLITS, Manifest, Sample, Shard, Split, SplitName, digest_of, write_manifest, write_shard
from align.stage import Report, record_runtime, replace_directory, say, track, write_report


class ShardReport(Report):
    """Counts per split and the digest that names the training data."""

    digest: str


@dataclass(slots=True)
class _Image:
    """One distinct image with its kept pairs. `split` and `place` (its rank in the shuffle) are set by `_assign`."""

    image_id: str
    image_key: str
    phash: int
    keys: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    split: SplitName = "train"
    place: bytes = b""


def shard(config: ShardConfig, *, raw: Path, filtered: Path, quality: Path, out: Path, reports: Path) -> ShardReport:
    """Writes the shards of all splits, then the manifest, then the report.

    Args:
        config: section `shard`.
        raw: data/raw, for the images' bytes.
        filtered: data/filtered, for the kept pairs and the perceptual hashes.
        quality: the folder of `align validate`'s report; its verdict must be "passed".
        out: data/shards; replaced whole.
        reports: the folder of this stage's report.

    Raises:
        GateError: the quality gate failed.
        DataError: no verdict, no kept pair, an empty split, or an image of a kept pair missing or undecodable.
    """
    require_passed(quality)
    images = read_kept(filtered)
    num_clusters, largest = _assign(images, config)
    with replace_directory(out) as part:
        spool_path = part / ".spool"
        with spool_path.open("w+b") as spool:
            places = _spool(images, raw, spool, config)
            splits = {name: _write_split(part, name, images, spool, places, config.images_per_shard) for name in SPLITS}
        spool_path.unlink()
        digest = digest_of(tar for name in SPLITS for tar in splits[name].shards)
        write_manifest(Manifest(image_px=config.image_px, digest=digest, splits=splits), part)
    metrics: dict[str, float | int] = {
        "shard/num_images": len(images),
        "shard/num_pairs": sum(len(image.keys) for image in images),
        "shard/num_clusters": num_clusters,
        "shard/largest_cluster_share": round(largest / len(images), 6),
        "shard/num_bytes": sum(tar.num_bytes for split in splits.values() for tar in split.shards),
    }
    for name, split in splits.items():
        metrics |= {f"shard/{name}/num_images": split.num_images, f"shard/{name}/num_pairs": split.num_pairs}
    report = ShardReport(metrics=metrics, digest=digest)
    write_report(report, reports)
    return report


def require_passed(quality: Path) -> None:
    """Refuses data without a passed verdict.

    Raises:
        DataError: there is no verdict.
        GateError: the verdict is "failed".
    """
    path = quality / "report.json"
    try:
        verdict = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no quality verdict on this data; run `align validate` first") from None
    if verdict.get("passed") is not True:
        reason = verdict.get("failure") or "no reason given"
        raise GateError(f"{path}: the quality gate failed ({reason}); see report.html beside it")


def read_kept(filtered: Path) -> list[_Image]:
    """The distinct images of the kept pairs, ordered by image_id; each image's pairs are in order of their keys.

    Raises:
        DataError: decisions.parquet or images.parquet is missing, or no pair is kept.
    """
    for name in ("decisions.parquet", "images.parquet"):
        if not (filtered / name).is_file():
            raise DataError(f"{filtered / name}: no such file; run `align filter` first")
    kept = pq.read_table(
        filtered / "decisions.parquet", columns=["key", "image_id", "image_key", "text"], filters=[("keep", "==", True)]
    ).sort_by("key")
    if len(kept) == 0:
        where = filtered / "decisions.parquet"
        raise DataError(f"{where}: no pair is kept; see the filter's report for the reasons, and relax its rules")
    phashes = pq.read_table(filtered / "images.parquet", columns=["image_id", "phash"])
    phash = dict(zip(phashes["image_id"].to_pylist(), phashes["phash"].to_pylist(), strict=True))
    images: dict[str, _Image] = {}
    for row in kept.to_pylist():
        image_id = row["image_id"]
        if phash.get(image_id) is None:
            where = filtered / "images.parquet"
            raise DataError(f"{where}: no hash of image {image_id}, which is kept; run `align filter` again")
        image = images.setdefault(image_id, _Image(image_id, row["image_key"], phash[image_id]))
        image.keys.append(row["key"])
        image.texts.append(row["text"])
    return sorted(images.values(), key=lambda image: image.image_id)


def _assign(images: list[_Image], config: ShardConfig) -> tuple[int, int]:
    """Sets every image's split and place; returns the number of clusters and the size of the largest.

    A cluster's split depends on the seed and its smallest image_id alone, so that images that arrive later do not move
    it (unless they join two clusters).
    """
    pair_images = np.repeat(np.arange(len(images)), [len(image.keys) for image in images])
    texts = [text for image in images for text in image.texts]
    phashes = np.array([image.phash for image in images], np.uint64)
    labels = cluster(len(images), pair_images, texts, phashes, config.near_duplicate_bits)
    sizes = np.bincount(labels, minlength=len(images))
    limit = config.max_cluster_share * len(images)
    for image, label in zip(images, labels.tolist(), strict=True):
        draw = int.from_bytes(_hash(config.seed, "split", images[label].image_id)[:8], "big") / 2**64
        if sizes[label] > max(limit, 1) or draw >= config.val_fraction + config.test_fraction:
            image.split = "train"
        else:
            image.split = "val" if draw < config.val_fraction else "test"
        image.place = _hash(config.seed, "place", image.image_id)
    images.sort(key=lambda image: image.place)
    num_clusters = len(np.unique(labels))
    wanted: dict[SplitName, float] = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    for name, fraction in wanted.items():
        if fraction > 0 and not any(image.split == name for image in images):
            raise DataError(
                f"split '{name}' would be empty: {len(images)} images in {num_clusters} clusters are too few for a "
                f"fraction of {fraction:g}; keep more pairs, or raise shard.{name}_fraction (0 leaves val or test out)"
            )
    return num_clusters, int(sizes.max())


def _hash(seed: int, what: str, image_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {what} {image_id}".encode()).digest()


def _spool(images: list[_Image], raw: Path, spool: BinaryIO, config: ShardConfig) -> dict[str, tuple[int, int]]:
    """Resizes every image once, in the order of the raw tars; returns image_key -> (offset, size) in the spool."""
    wanted = {image.image_key for image in images}

    def wanted_images() -> Iterator[tuple[str, bytes]]:
        for source in raw_shards(raw):
            for key, data in iter_images(source):
                if key in wanted:
                    yield key, data

    places: dict[str, tuple[int, int]] = {}
    resized = _resize_all(wanted_images(), config)
    for key, data in track(resized, what="shard: images resized", total=len(wanted)):
        places[key] = (spool.tell(), len(data))
        spool.write(data)
    missing = wanted - places.keys()
    if missing:
        what = f"{len(missing)} images of kept pairs are missing, the first is {min(missing)}"
        raise DataError(f"{raw}: {what}; run `align ingest` and `align filter` again")
    return places


def _resize_all(images: Iterable[tuple[str, bytes]], config: ShardConfig) -> Iterator[tuple[str, bytes]]:
    """`resize` on all cores, in order, a bounded number of images in flight (the codecs release the GIL)."""
    num_threads = os.cpu_count() or 1
    window: deque[tuple[str, Future[bytes]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for key, data in images:
            window.append((key, pool.submit(resize, data, config.image_px, config.jpeg_quality)))
            if len(window) >= 4 * num_threads:
                yield _finish(window)
        while window:
            yield _finish(window)


def _finish(window: deque[tuple[str, Future[bytes]]]) -> tuple[str, bytes]:
    key, future = window.popleft()
    try:
        return key, future.result()
    except PictureError as error:
        what = f"image {key} of a kept pair does not decode ({error})"
        raise DataError(f"{what}; run `align ingest` and `align filter` again") from None


def resize(data: bytes, image_px: int, quality: int) -> bytes:
    """Image bytes of any format -> JPEG of `image_px` x `image_px`, aspect not kept, transparency on white.

    Raises:
        PictureError: the bytes do not decode.
    """
    # The filter has refused pictures of too many pixels; a JPEG need not be decoded larger than twice the result.
    image = decode(data, max_pixels=sys.maxsize, hint_px=2 * image_px)
    resized = np.array(image.resize((image_px, image_px), Image.Resampling.BILINEAR))
    # 4:4:4, since halved colour resolution shows at this size.
    return bytes(simplejpeg.encode_jpeg(resized, quality=quality, colorspace="RGB", colorsubsampling="444"))


def _write_split(
    directory: Path,
    name: SplitName,
    images: list[_Image],
    spool: BinaryIO,
    places: dict[str, tuple[int, int]],
    images_per_shard: int,
) -> Split:
    """Writes `name/NNNNN.tar` with the split's images in the order of the list."""
    chosen = [image for image in images if image.split == name]

    def samples(rows: list[_Image]) -> Iterator[Sample]:
        for image in rows:
            offset, size = places[image.image_key]
            spool.seek(offset)
            yield Sample(image.image_key, image.image_id, spool.read(size), tuple(image.keys), tuple(image.texts))

    shards: list[Shard] = []
    for start in range(0, len(chosen), images_per_shard):
        rows = chosen[start : start + images_per_shard]
        shards.append(write_shard(directory, f"{name}/{len(shards):05d}.tar", samples(rows)))
    num_pairs = sum(len(image.keys) for image in chosen)
    return Split(num_images=len(chosen), num_pairs=num_pairs, shards=tuple(shards))


def main(params: Params, args: argparse.Namespace) -> None:
    """`align shard`."""
    config, paths = params.section(ShardConfig), params.section(PathsConfig)
    with record_runtime("shard", paths.runtime) as record:
        report = shard(
            config, raw=paths.raw, filtered=paths.filtered, quality=paths.reports / "quality",
            out=paths.shards, reports=paths.reports / "shard",
        )  # fmt: skip
        record["num_images"] = report.metrics["shard/num_images"]
    counts = ", ".join(f"{name} {report.metrics[f'shard/{name}/num_pairs']:,}" for name in SPLITS)
    num_pairs, num_images = report.metrics["shard/num_pairs"], report.metrics["shard/num_images"]
    say(f"shard: {num_pairs:,} pairs of {num_images:,} images ({counts})")
