"""Pairs for notebooks and scripts: `align.open_dataset` over data/raw, data/filtered or data/shards.

A pair's picture is read when it is asked for. Nothing is written, and at most one shard's table is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from PIL import Image

from align.errors import DataError
from align.formats.filtered import DECISIONS, decision_parts, parts_of
from align.formats.raw import RawShard, image_spans, raw_shards, read_table
from align.formats.shards import MANIFEST, SPLITS, iter_samples, read_manifest
from align.pairs.picture import MAX_PIXELS, PictureError, decode

Kind = Literal["raw", "filtered", "shards"]


@dataclass(frozen=True)
class Pair:
    """An image/alt-text pair.

    Attributes:
        key: unique over all sources.
        text: of raw pairs as it came; of others as the filter normalised it.
        keep: the filter's decision; None where no decisions are known.
        reasons: why it was dropped, in rule order; the first one counts.
        split: train, val or test, of shards.
        row: everything else that the dataset says of it: address, status, language, ...
    """

    key: str
    text: str | None
    keep: bool | None
    reasons: tuple[str, ...]
    split: str | None
    row: Mapping[str, Any]
    _read: Callable[[], bytes | None] = field(repr=False, compare=False)

    @property
    def file(self) -> bytes | None:
        """The picture's file, as it came or as training reads it; None if there is none."""
        return self._read()

    @property
    def image(self) -> Image.Image:
        """The picture, RGB and upright.

        Raises:
            DataError: it has none (`row["status"]` says why), or it does not decode.
        """
        if (data := self._read()) is None:
            raise DataError(f"pair {self.key}: it has no picture here; its status is {self.row.get('status')}")
        try:
            return decode(data, max_pixels=MAX_PIXELS)
        except PictureError as error:
            raise DataError(f"pair {self.key}: its picture does not decode: {error}") from None


class Dataset:
    """Pairs of a folder, in its order; `open_dataset` makes it. Each iteration reads from the start.

    Attributes:
        kind: raw, filtered or shards.
        path: the folder.
    """

    def __init__(self, kind: Kind, path: Path, count: Callable[[], int], pairs: Callable[[], Iterator[Pair]]) -> None:
        self.kind, self.path, self._count, self._pairs = kind, path, count, pairs

    def __repr__(self) -> str:
        return f"<align.Dataset {self.kind} {self.path}, {len(self):,} pairs>"

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[Pair]:
        return self._pairs()

    def __getitem__(self, position: int) -> Pair:
        """The pair at a position, after reading those before it; for several take `itertools.islice`."""
        if not isinstance(position, int):
            raise TypeError("a dataset has positions, such as dataset[0]; itertools.islice(dataset, 10) takes several")
        return next(islice(self, range(len(self))[position], None))

    def reasons(self) -> Counter[str]:
        """Reason -> number of pairs that it dropped first; `kept`: those that no rule dropped."""
        return Counter(pair.reasons[0] if pair.reasons else "kept" for pair in self if pair.keep is not None)


def open_dataset(path: str | Path, *, raw: str | Path | None = None) -> Dataset:
    """The pairs of a folder.

    Args:
        path: data/raw, also one that img2dataset wrote; data/filtered, whose pairs have their decisions and reasons; or
            data/shards.
        raw: of data/filtered: the folder with the pictures; None: `raw` beside it.

    Raises:
        DataError: the folder is none of these, or damaged.
        FormatError: it is of another version.
    """
    folder = Path(path)
    manifest = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give data/raw, data/filtered or data/shards")
    if manifest.is_file() and any((folder / split).is_dir() for split in SPLITS):
        found = read_manifest(folder)
        num_pairs = sum(one.num_pairs for one in found.splits.values())
        return Dataset("shards", folder, lambda: num_pairs, partial(_in_shards, folder))
    if parts_of(folder, DECISIONS):
        pictures = Path(raw) if raw is not None else folder.parent / "raw"
        parts = decision_parts(folder)
        return Dataset("filtered", folder, lambda: _num_rows(parts), partial(_decided, parts, pictures))
    shards = raw_shards(folder)
    return Dataset("raw", folder, lambda: _num_rows([shard.local_table() for shard in shards]), partial(_raw, shards))


def _num_rows(tables: list[Path]) -> int:
    return sum(pq.read_metadata(table).num_rows for table in tables)


def _raw(shards: list[RawShard]) -> Iterator[Pair]:
    pictures = _Pictures(shards)
    for shard in shards:
        for row in read_table(shard).to_pylist():
            read = pictures.reader(row["image_key"], shard.name)
            yield Pair(row.pop("key"), row.pop("caption"), None, (), None, row, read)


def _decided(parts: list[Path], raw: Path) -> Iterator[Pair]:
    pictures = _Pictures(raw_shards(raw) if raw.is_dir() else [])
    for part in parts:
        for row in pq.read_table(part).to_pylist():
            reasons = tuple(row.pop("reasons") or ())
            read = pictures.reader(row["image_key"], part.stem)
            yield Pair(row.pop("key"), row.pop("text"), row.pop("keep"), reasons, None, row, read)


def _in_shards(folder: Path) -> Iterator[Pair]:
    known = read_manifest(folder).splits
    for split in [name for name in SPLITS if name in known]:
        for sample in iter_samples(folder, split):
            read = partial(bytes, sample.image)
            row = {"image_id": sample.image_id, "image_key": sample.key}
            for key, text in zip(sample.keys, sample.texts, strict=True):
                yield Pair(key, text, True, (), split, row, read)


class _Pictures:
    """The pictures of raw shards; where they lie in a tar is read when the first one of it is asked for."""

    def __init__(self, shards: list[RawShard]) -> None:
        self._shards = {shard.name: shard for shard in shards}
        self._spans: dict[str, dict[str, tuple[Path, int, int]]] = {}

    def reader(self, key: str | None, shard: str) -> Callable[[], bytes | None]:
        """Reads the picture of a tar sample, which is most often in this shard."""
        return lambda: None if key is None else self._read(key, shard)

    def _read(self, key: str, shard: str) -> bytes | None:
        for name in sorted(self._shards, key=lambda name: name != shard):
            if name not in self._spans:
                path = self._shards[name].local_tar()
                with path.open("rb") as file:
                    found = image_spans(file, str(path))
                    self._spans[name] = {sample: (path, offset, size) for sample, offset, size in found}
            if key in self._spans[name]:
                path, offset, size = self._spans[name][key]
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(size)
        return None
