"""A hand-made data/raw and data/filtered of a few pairs, for tests of the stages behind the filter."""

import hashlib
import io
import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from align.formats import verdict as verdict_format
from align.formats.raw import iter_images, raw_shards
from align.formats.shards import Sample
from tests.support import shard_folder
from tests.support.tars import tar


@dataclass
class Pair:
    """One row. `image` names the picture (equal name, equal bytes); None is a pair whose image did not download."""

    text: str
    image: int | None
    reason: str | None = None
    phash: int | None = None
    evaluation_sets: tuple[str, ...] = ()


def jpeg(seed, width=260, height=220):
    """A picture of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def far_apart(index):
    """A hash of 64 bits that differs from every other one in about 32."""
    return int.from_bytes(hashlib.sha256(str(index).encode()).digest()[:8], "big")


def write(root, pairs, *, pairs_per_shard=1000):
    """Writes `root/raw` and `root/filtered`; returns both. Each tar has the pictures of its own pairs."""
    raw, filtered = root / "raw", root / "filtered"
    raw.mkdir(parents=True)
    filtered.mkdir(parents=True)
    decisions, images = [], {}
    for start in range(0, len(pairs), pairs_per_shard):
        name = f"{start // pairs_per_shard:05d}"
        rows, members, owners = [], dict[str, bytes](), {}
        for index, pair in enumerate(pairs[start : start + pairs_per_shard]):
            key = f"{name}{index:04d}"
            row = _row(key, pair)
            if pair.image is not None:
                data = jpeg(pair.image)
                row["sha256"] = hashlib.sha256(data).hexdigest()
                if pair.image not in owners:
                    owners[pair.image] = key
                    members |= {f"{key}.jpg": data, f"{key}.txt": pair.text.encode(), f"{key}.json": b"{}"}
                row["image_key"] = owners[pair.image]
                phash = far_apart(pair.image) if pair.phash is None else pair.phash
                images.setdefault(row["sha256"], {
                    "image_id": row["sha256"], "image_key": row["image_key"], "width_px": 260, "height_px": 220,
                    "nsfw_score": 0.01, "phash": phash, "num_texts": 1, "evaluation_sets": list(pair.evaluation_sets),
                })  # fmt: skip
            rows.append(row)
            reasons = [pair.reason] if pair.reason else []
            decisions.append({
                "key": key, "keep": not reasons, "reason": pair.reason, "reasons": reasons,
                "image_id": row["sha256"], "image_key": row["image_key"], "text": pair.text,
            })  # fmt: skip
        tar(raw / f"{name}.tar", members)
        pq.write_table(pa.Table.from_pylist(rows, schema=RAW_SCHEMA), raw / f"{name}.parquet")
        (raw / f"{name}_stats.json").write_text(json.dumps({"count": len(rows)}))
    write_decisions(filtered, decisions)
    write_images(filtered, sorted(images.values(), key=lambda row: str(row["image_id"])))
    return raw, filtered


def write_decisions(filtered, rows):
    """A file for each raw shard, by which the keys of its pairs begin."""
    (filtered / "decisions").mkdir(exist_ok=True)
    for name in sorted({row["key"][:5] for row in rows}):
        table = pa.Table.from_pylist([row for row in rows if row["key"][:5] == name], schema=DECISIONS_SCHEMA)
        pq.write_table(table, filtered / f"decisions/{name}.parquet")


def write_images(filtered, rows):
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA), filtered / "images.parquet")


def write_shards(root, *, num_val=0):
    """Writes `root/shards` of the kept pairs in `root/raw` and `root/filtered`; the last images are the split val."""
    kept = pq.read_table(root / "filtered/decisions", filters=[("keep", "==", True)]).to_pylist()
    stored = {key: data for shard in raw_shards(root / "raw") for key, data in iter_images(shard)}
    samples = {}
    for row in kept:
        key, image_id = row["image_key"], row["image_id"]
        known = samples.get(key, Sample(key, image_id, stored[key], (), ()))
        samples[key] = replace(known, keys=(*known.keys, row["key"]), texts=(*known.texts, row["text"]))
    chosen = list(samples.values())
    cut = len(chosen) - num_val
    tars = {"train": [chosen[:cut]]}
    if num_val:
        tars["val"] = [chosen[cut:]]
    shard_folder.write_shards(root / "shards", tars, image_px=16)
    return root / "shards"


def write_verdict(quality, *, passed, data="0" * 64):
    """The verdict and the report that a gate writes to its folder."""
    failure = None if passed else "expect_this: observed 1, expected 2"
    verdict = verdict_format.Verdict(passed=passed, failure=failure, data=data)
    verdict_format.write_verdict(verdict, quality)
    report = verdict.model_dump() | {"expectations": [], "distributions": {}, "bands": {}}
    (quality / "report.json").write_text(json.dumps(report))
    return quality


def _row(key, pair):
    downloaded = pair.image is not None
    return {
        "url": f"https://example.org/{pair.image}.jpg", "caption": pair.text, "key": key,
        "status": "success" if downloaded else "failed_to_download", "error_message": None if downloaded else "404",
        "width": 260 if downloaded else None, "height": 220 if downloaded else None,
        "original_width": 260 if downloaded else None, "original_height": 220 if downloaded else None,
        "sha256": None, "page_url": "https://example.org/", "image_key": None,
    }  # fmt: skip


RAW_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("url", "caption", "key", "status", "error_message")]
    + [(name, pa.int32()) for name in ("width", "height", "original_width", "original_height")]
    + [(name, pa.string()) for name in ("sha256", "page_url", "image_key")]
)
DECISIONS_SCHEMA = pa.schema([
    ("key", pa.string()), ("keep", pa.bool_()), ("reason", pa.string()), ("reasons", pa.list_(pa.string())),
    ("image_id", pa.string()), ("image_key", pa.string()), ("text", pa.string()),
    ("language", pa.string()),
])  # fmt: skip
IMAGES_SCHEMA = pa.schema([
    ("image_id", pa.string()), ("image_key", pa.string()), ("width_px", pa.int32()), ("height_px", pa.int32()),
    ("nsfw_score", pa.float32()), ("phash", pa.uint64()), ("num_texts", pa.int32()),
    ("evaluation_sets", pa.list_(pa.string())),
])  # fmt: skip
