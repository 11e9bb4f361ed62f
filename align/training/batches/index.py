"""Where the samples of a split are stored: the manifest is the index, and a shard's offsets are read when needed.

Most of a manifest is offsets: 54 GB at the paper's 1.8 billion images (section 3). As Python tuples they would take 307
bytes per image. Here one pass notes where the offsets of each shard are in the file, and a rank parses those of its
current block of shards. This also keeps the plan that is sent to the ranks small.
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
from align.interfaces.store import Tars

#: Compact JSON, as `align.shard.writer` writes it.
_OFFSETS = b'"offsets":['


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Where the samples of a split are stored. Picklable: 150 bytes per shard.

    Attributes:
        manifest: path of the manifest.
        shards: absolute paths of the tars, or URIs.
        counts: (S,) number of samples in each shard.
        spans: (S, 2) first and last byte, in the manifest, of the text of each shard's offsets; the last is excluded.
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
        """(S + 1,) number of each shard's first sample, then the number of all samples."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def read_offsets(self, shard: int) -> NDArray[np.int64]:
        """(n, 4) for the n samples of one shard: jpg offset, jpg bytes, json offset, json bytes.

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
            raise CorruptError(f"{self.manifest}: was replaced while it was in use; run again")
        return numbers.reshape(-1, 4)


class Offsets:
    """A cache of the offsets of the shards used last; thread-safe.

    Attributes:
        num_kept: samples whose offsets are kept, at 32 bytes each; at least one shard's are.
    """

    def __init__(self, index: SplitIndex, num_kept: int) -> None:
        self._index = index
        self.num_kept = num_kept
        self._of_shard: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._num_held = 0
        self._lock = threading.Lock()

    def of(self, shard: int) -> NDArray[np.int64]:
        """The offsets of one shard, see `SplitIndex.read_offsets`."""
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
    """A manifest without its offsets, and where those are in its file.

    Attributes:
        manifest: every shard's `offsets` are empty.
        spans: split -> (S, 2), as `SplitIndex.spans`.
    """

    path: Path
    manifest: Manifest
    spans: dict[SplitName, NDArray[np.int64]]

    def split(self, name: SplitName, tars: Tars | None = None) -> SplitIndex:
        """The index of a split.

        Args:
            name: of the split.
            tars: the object store for tars missing from the folder.

        Raises:
            DataError: a shard of the manifest is missing from the folder, and `tars` is None.
        """
        folder = self.path.parent
        rows = self.manifest.splits[name].shards if name in self.manifest.splits else ()
        uris = []
        for row in rows:
            file = folder / row.path
            if file.is_file():
                uris.append(str(file.resolve()))
            elif tars is not None:
                uris.append(tars.uri(row.sha256, row.num_bytes))
            else:
                raise DataError(
                    f"{file}: named in the manifest but missing; run `align shard` again, or `dvc pull`, or set "
                    "store.objects to the store that has it"
                )
        spans = self.spans.get(name, np.empty((0, 2), dtype=np.int64))
        counts = np.array([row.num_images for row in rows], dtype=np.int64)
        return SplitIndex(str(self.path.resolve()), tuple(uris), counts, spans)


def read_outline(shards: Path) -> Outline:
    """Reads `manifest.json` of a folder without its offsets.

    Raises:
        DataError: there is no manifest.
        FormatError: another schema_version or layout, or not the compact text that `align shard` writes.
    """
    path = shards / MANIFEST
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            offsets = list(_spans(text))
            edges = [0, *(edge for span in offsets for edge in span), len(text)]
            rest = b"".join(text[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align shard` first") from None
    except ValueError:  # an empty file cannot be mapped
        raise FormatError(f"{path}: is empty; run `align shard` again") from None
    manifest = parse_manifest(rest, path)
    rows = [row for split in manifest.splits.values() for row in split.shards]
    if len(rows) != len(offsets) or any(row.offsets for row in rows):
        raise FormatError(f"{path}: not as `align shard` writes it (was it reformatted?); run `align shard` again")
    spans, start = {}, 0
    for name, split in manifest.splits.items():
        end = start + len(split.shards)
        spans[name] = np.array(offsets[start:end], dtype=np.int64).reshape(-1, 2)
        start = end
    return Outline(path, manifest, spans)


def _spans(text: mmap.mmap) -> Iterator[tuple[int, int]]:
    position = text.find(_OFFSETS)
    while position >= 0:
        begin = position + len(_OFFSETS)
        end = begin if text[begin : begin + 1] == b"]" else text.find(b"]]", begin) + 1
        if end < begin:
            return  # cut off: the rest is not valid JSON, so parsing reports it
        yield begin, end
        position = text.find(_OFFSETS, end)
