"""Where the samples of a split lie: the manifest itself is the index, and each shard's offsets are read when needed.

Most of a manifest is offsets: 54 GB at the paper's 1.8 billion images (section 3). As Python tuples they took 307 bytes
an image, here none: one pass finds where each shard's offsets stand in the file, and a rank parses the shards of the
block that it is in. So a plan that travels to ranks stays small, too.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.errors import CorruptError, DataError, FormatError
from align.formats.shards import MANIFEST, Manifest, SplitName, parse_manifest
from align.protocols.store import Tars

#: As `align.shard.writer` writes it: compact.
_OFFSETS = b'"offsets":['


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Where the samples of a split lie. Can be pickled: 150 bytes a shard.

    Attributes:
        manifest: path of the manifest.
        shards: absolute paths of the tars, or URIs.
        counts: (S,) samples of each.
        spans: (S, 2) where the text of each shard's offsets begins and ends in the manifest, in bytes.
    """

    manifest: str
    shards: tuple[str, ...]
    counts: NDArray[np.int64]
    spans: NDArray[np.int64]

    @cached_property
    def num_images(self) -> int:
        """Samples in the split."""
        return int(self.counts.sum())

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(S + 1,) number of each shard's first sample, and the number of samples."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def read_offsets(self, shard: int) -> NDArray[np.int64]:
        """(n, 4) of one shard: jpg offset, jpg bytes, json offset, json bytes.

        Raises:
            CorruptError: the manifest was replaced since the index was made.
        """
        begin, end = (int(edge) for edge in self.spans[shard])
        with Path(self.manifest).open("rb") as file:
            file.seek(begin)
            text = file.read(end - begin)
        try:
            numbers = np.array(text.translate(None, b"[]").split(b","), dtype=np.int64)
        except ValueError:
            numbers = np.empty(0, dtype=np.int64)
        if len(numbers) != 4 * int(self.counts[shard]):
            raise CorruptError(f"{self.manifest}: was replaced while it was used; run again")
        return numbers.reshape(-1, 4)


class Offsets:
    """The offsets of the shards that were looked at last; thread-safe.

    Attributes:
        num_kept: samples whose offsets stay, at 32 bytes each; at least the shards in use.
    """

    def __init__(self, index: SplitIndex, num_kept: int) -> None:
        self._index = index
        self.num_kept = num_kept
        self._of_shard: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._num_held = 0
        self._lock = threading.Lock()

    def of(self, shard: int) -> NDArray[np.int64]:
        """As `SplitIndex.read_offsets`."""
        with self._lock:
            if shard in self._of_shard:
                self._of_shard.move_to_end(shard)
                return self._of_shard[shard]
            rows = self._index.read_offsets(shard)
            self._of_shard[shard] = rows
            self._num_held += len(rows)
            while self._num_held > self.num_kept and len(self._of_shard) > 1:
                self._num_held -= len(self._of_shard.popitem(last=False)[1])
            return rows


@dataclass(frozen=True)
class Outline:
    """A manifest without its offsets, and where they stand.

    Attributes:
        manifest: every shard's `offsets` are empty.
        spans: per split (S, 2), as `SplitIndex.spans`.
    """

    path: Path
    manifest: Manifest
    spans: dict[SplitName, NDArray[np.int64]]

    def split(self, name: SplitName, tars: Tars | None = None) -> SplitIndex:
        """The index of a split.

        Args:
            name: of the split.
            tars: where tars are that the folder has not.

        Raises:
            DataError: a shard that the manifest names is missing, and there is no `tars`.
        """
        folder = self.path.parent
        rows = self.manifest.splits[name].shards if name in self.manifest.splits else ()
        places = []
        for row in rows:
            here = folder / row.path
            if here.is_file():
                places.append(str(here.resolve()))
            elif tars is not None:
                places.append(tars.uri(row.sha256, row.num_bytes))
            else:
                raise DataError(
                    f"{here}: named in the manifest but missing; run `align shard` again, or `dvc pull`, or set "
                    "store.objects to where it was put"
                )
        spans = self.spans.get(name, np.empty((0, 2), dtype=np.int64))
        counts = np.array([row.num_images for row in rows], dtype=np.int64)
        return SplitIndex(str(self.path.resolve()), tuple(places), counts, spans)


def read_outline(shards: Path) -> Outline:
    """Reads `manifest.json` of a folder, all but the offsets.

    Raises:
        DataError: there is no manifest.
        FormatError: it has another schema_version or layout, or is not the compact text that `align shard` writes.
    """
    path = shards / MANIFEST
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found = list(_spans(text))
            edges = [0, *(edge for span in found for edge in span), len(text)]
            rest = b"".join(text[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align shard` first") from None
    except ValueError:  # an empty file cannot be mapped
        raise FormatError(f"{path}: is empty; run `align shard` again") from None
    manifest = parse_manifest(rest, path)
    rows = [row for split in manifest.splits.values() for row in split.shards]
    if len(rows) != len(found) or any(row.offsets for row in rows):
        raise FormatError(f"{path}: not as `align shard` writes it (was it formatted anew?); run `align shard` again")
    spans, start = {}, 0
    for name, split in manifest.splits.items():
        end = start + len(split.shards)
        spans[name] = np.array(found[start:end], dtype=np.int64).reshape(-1, 2)
        start = end
    return Outline(path, manifest, spans)


def _spans(text: mmap.mmap) -> Iterator[tuple[int, int]]:
    at = text.find(_OFFSETS)
    while at >= 0:
        begin = at + len(_OFFSETS)
        end = begin if text[begin : begin + 1] == b"]" else text.find(b"]]", begin) + 1
        if end < begin:
            return  # cut off; what is left is no JSON, which is said then
        yield begin, end
        at = text.find(_OFFSETS, end)
