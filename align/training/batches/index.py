"""Where the samples of a split are stored. A tar's index is read when it is needed: those of a rank's current block.

As Python tuples the offsets would take 307 bytes per image. This also keeps the plan that is sent to the ranks small.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.errors import CorruptError
from align.formats.shards import MANIFEST, Manifest, Shard, SplitName, local_tar, read_offsets
from align.interfaces.store import Tars


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Where the samples of a split are stored. Picklable: 300 bytes per shard.

    Attributes:
        manifest: path of the manifest.
        shards: absolute paths of the tars, or URIs.
        counts: (S,) number of samples in each shard.
        indexes: (path, sha256) of each tar's index.
        given: whether others made the tars: pictures of any size, and texts as `align.formats.given_tars` reads them.
        cut: of a part of a split: how many samples the last shard has, and how many texts of the last one are in the
            part; None: the whole split.
    """

    manifest: str
    shards: tuple[str, ...]
    counts: NDArray[np.int64]
    indexes: tuple[tuple[str, str], ...]
    given: bool = False
    cut: tuple[int, int] | None = None

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, name: SplitName, tars: Tars | None = None) -> SplitIndex:
        """The index of a split.

        Args:
            folder: of the manifest.
            manifest: of all splits.
            name: of the split.
            tars: the object store for tars missing from the folder.

        Raises:
            DataError: a shard of the manifest is missing from the folder, and `tars` is None.
        """

        def uri(row: Shard) -> str:
            if tars is not None and not (folder / row.path).is_file():
                return tars.uri(row.sha256, row.num_bytes)
            return str(local_tar(folder, row, None).resolve())

        rows = manifest.splits[name].shards if name in manifest.splits else ()
        uris = tuple(row.given or uri(row) for row in rows)
        counts = np.array([row.num_images for row in rows], dtype=np.int64)
        indexes = tuple((str((folder / row.offsets_path).resolve()), row.offsets_sha256) for row in rows)
        given = manifest.left_out is not None
        return cls(str((folder / MANIFEST).resolve()), uris, counts, indexes, given)

    @cached_property
    def num_images(self) -> int:
        """Samples in the split."""
        return int(self.counts.sum())

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(S + 1,) number of each shard's first sample, then the number of all samples."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def read_offsets(self, shard: int) -> NDArray[np.int64]:
        """(n, 4) for the n samples of one shard: picture's offset and bytes, then its texts' (a json; or as `given`).

        Raises:
            CorruptError: the tar's index is missing, damaged, or was replaced since.
        """
        path, sha256 = self.indexes[shard]
        offsets = read_offsets(Path(path), sha256)
        num_images = self.cut[0] if self.cut and shard == len(self.shards) - 1 else self.counts[shard]
        if offsets.shape != (num_images, 4):
            raise CorruptError(f"{path}: of another number of images than {MANIFEST} says; run `align shard` again")
        return offsets[: self.counts[shard]]


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
