"""A synthesised data/raw without pictures, and a filter's work folder with the tables about pictures: equal every time.

Texts are words by Zipf's law, some with capitals, punctuation or letters beyond ASCII; three pictures to four pairs,
some of them in many shards; some texts under many pictures. All by array operations, a shard at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.filter.pair_tables import image_hashes
from align.filter.tables import IMAGES, MAX_ROWS, SCORED
from align.filter.work_folder import write_table
from align.formats.raw import SCHEMA
from align.formats.statuses import FAILED_TO_DOWNLOAD, SUCCESS
from align.formats.tar import TarWriter
from align.interfaces.executor import Task
from align.services.executors.executors import LocalExecutor

SHARD_SIZE = 10_000
_NUM_WORDS = 1_000_000
_ZIPF_EXPONENT = 1.05
_NUM_POPULAR = 2_000
_IMAGES_PER_SHARD = SHARD_SIZE * 3 // 4

Ints = npt.NDArray[np.int64]


def synthesise(
    folder: Path, num_pairs: int, num_workers: int | None = None, picture: Callable[[int], bytes] | None = None
) -> None:
    """Writes `folder/raw`, and `folder/images` and `folder/scored` as `align filter` would leave them.

    Args:
        folder: to write to.
        num_pairs: in shards of SHARD_SIZE.
        num_workers: processes; None: one per core.
        picture: the picture of a number; None: the tars are empty.
    """
    for name in ("raw", "images", "scored"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"word": _vocabulary()}), folder / "vocabulary.parquet")
    for _ in LocalExecutor(num_workers).map(
        Task(nullcontext, partial(_shard, folder, picture)), range(-(-num_pairs // SHARD_SIZE))
    ):
        pass
    (folder / "vocabulary.parquet").unlink()


def _vocabulary() -> pa.Array:
    """Words by rank: those of Python's manual, then made-up ones, longer and longer.

    One in nine has a capital, one in twelve a comma, one in fifty is beyond ASCII.
    """
    random = np.random.default_rng(0)
    english = Counter(re.findall("[a-z]+", " ".join(topics.values()).lower()))
    words = [word for word, _ in sorted(english.items(), key=lambda item: (-item[1], item[0]))]
    lengths = np.clip(6 + random.normal(0, 2, _NUM_WORDS), 2, 16).astype(int)
    weights = 1 / np.arange(2, 28)
    alphabet = np.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", np.uint8)
    letters = random.choice(alphabet, (_NUM_WORDS, 16), p=weights / weights.sum())
    for rank in range(_NUM_WORDS):
        word = words[rank] if rank < len(words) else letters[rank, : lengths[rank]].tobytes().decode()
        if rank % 9 == 4:
            word = word.capitalize()
        if rank % 12 == 7:
            word += ","
        if rank % 50 == 33:
            word = "café-" + word if rank % 100 == 33 else "по" + word
        words[rank : rank + 1] = [word]
    return pa.array(words)


def _shard(folder: Path, picture: Callable[[int], bytes] | None, _: None, index: int) -> None:
    random = np.random.default_rng([1, index])
    name = f"{index:05d}"
    vocabulary = pq.read_table(folder / "vocabulary.parquet")["word"].combine_chunks()
    texts = _texts(random, vocabulary)
    # pictures: of this shard alone, or popular ones that many shards hold
    numbers = random.integers(0, _IMAGES_PER_SHARD, SHARD_SIZE) + _NUM_POPULAR + index * _IMAGES_PER_SHARD
    popular = random.random(SHARD_SIZE) < 0.02
    numbers[popular] = np.minimum(random.zipf(1.3, popular.sum()), _NUM_POPULAR) - 1
    failed = random.random(SHARD_SIZE) < 0.02
    distinct, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    pictures = [picture(number) if picture else b"%d" % number for number in distinct.tolist()]
    ids = pa.array([hashlib.sha256(data).hexdigest() for data in pictures])
    keys = pa.array([f"{index:05d}{row:04d}" for row in range(SHARD_SIZE)])
    there = pa.array(~failed)
    sha256 = pc.if_else(there, ids.take(pa.array(which)), None)
    image_keys = pc.if_else(there, keys.take(pa.array(first[which])), None)
    columns = {
        "url": pc.binary_join_element_wise("https://images.example.org", keys, "a.jpg", "/"),
        "caption": texts,
        "key": keys,
        "status": pc.if_else(there, SUCCESS, FAILED_TO_DOWNLOAD),
        "error_message": pc.if_else(there, None, pa.scalar("HTTP 404")),
        "sha256": sha256,
        "page_url": pc.binary_join_element_wise("https://example.org", keys, "/"),
        "image_key": image_keys,
    }
    columns |= {field.name: pa.nulls(SHARD_SIZE, field.type) for field in SCHEMA if field.name not in columns}
    table = pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)
    pq.write_table(table, folder / "raw" / f"{name}.parquet", compression="zstd")
    places = dict(zip(ids.to_pylist(), range(len(pictures)), strict=True))
    with (folder / "raw" / f"{name}.tar").open("wb") as file:
        tar = TarWriter(file)
        for key, image_id in sorted({*zip(image_keys.to_pylist(), sha256.to_pylist(), strict=True)} - {(None, None)}):
            if picture:
                tar.add((f"{key}.jpg", pictures[places[image_id]]))
        tar.close()
    _pictures(folder, index, {image_id: int(distinct[place]) for image_id, place in places.items()}, table)


def _texts(random: np.random.Generator, vocabulary: pa.Array) -> pa.Array:
    lengths = np.clip(random.lognormal(2.1, 0.7, SHARD_SIZE), 1, 40).astype(np.int64)
    # the inverse of Zipf's distribution function, continuous: rank = (1 - u (1 - N^(1 - s)))^(1 / (1 - s))
    power = 1 - _ZIPF_EXPONENT
    ranks = (1 - random.random(lengths.sum()) * (1 - _NUM_WORDS**power)) ** (1 / power)
    words = vocabulary.take(pa.array(np.minimum(ranks.astype(np.int64), _NUM_WORDS) - 1))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    texts = pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")
    shared = pa.array([f"Click to enlarge picture {number}" for number in random.integers(0, 500, SHARD_SIZE)])
    chance = random.random(SHARD_SIZE)
    texts = pc.if_else(pa.array(chance < 0.05), shared, texts)
    return pc.if_else(
        pa.array((chance > 0.05) & (chance < 0.07)), pc.binary_join_element_wise("IMG", texts, "_"), texts
    )


def _pictures(folder: Path, index: int, known: dict[str, int], table: pa.Table) -> None:
    """What measuring and scoring the shard's pictures would leave; the same of a picture in every shard."""
    rows: dict[str, int] = {}
    for row, image_id in enumerate(table["sha256"].to_pylist()):
        if image_id is not None:
            rows.setdefault(image_id, row)
    ids = list(rows)
    own = np.array([known[image_id] for image_id in ids])
    mixed = own.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    parts = [(mixed >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (48, 32, 16)]
    image_keys = table["image_key"].take(pa.array(list(rows.values())))
    sets = parts[2] < 66  # 0.1 %
    images = {
        "row_number": index * MAX_ROWS + np.array(list(rows.values())),
        "image_hash": pa.array(image_hashes(ids)),
        "image_id": ids,
        "image_key": image_keys,
        "width_px": pa.array(100 + parts[0] % 1100, pa.int32()),
        "height_px": pa.array(100 + parts[1] % 1100, pa.int32()),
        "is_picture": np.ones(len(ids), bool),
        "decodable": parts[2] > 600,
        "phash": pa.array(mixed),
        "evaluation_sets": pa.array([["tiny"] if flag else [] for flag in sets], pa.list_(pa.string())),
        "twin": pa.array(["tiny/one" if flag else None for flag in sets], pa.string()),
    }
    write_table(
        pa.table([images[name] for name in IMAGES.names], schema=IMAGES), folder / "images" / f"{index:05d}.parquet"
    )
    here = (own >= _NUM_POPULAR) | (index == 0)  # each picture is scored once
    score = (parts[0] ^ parts[1]).astype(np.float64) / 65536
    scored = [images["image_hash"].filter(pa.array(here)), pa.array(score[here] ** 8)]
    write_table(pa.table(scored, schema=SCORED), folder / "scored" / f"{index:05d}.parquet")
