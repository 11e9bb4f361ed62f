"""Where the samples of a split are stored. A tar's index is read when it is needed, so plans for ranks are small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.errors import CorruptError
from align.formats.shards import MANIFEST, Manifest, Shard, SplitName, local_tar, read_offsets
from align.interfaces.store import Tars
from align.training.batches.order import starts_of


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """Where the samples of a split are stored. Picklable: 300 bytes per shard.

    Attributes:
        shards: absolute paths of the tars, or URIs.
        counts: (S,) number of samples in each shard.
        indexes: (path, sha256) of each tar's index.
        given: whether others made the tars: pictures of any size, and texts as `training.given_samples` reads them.
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
        """Makes a split's index from a folder's manifest. Raises DataError: a tar is neither there nor in `tars`."""

        def uri(row: Shard) -> str:
            if tars is not None and not (folder / row.path).is_file():
                return tars.uri(row.sha256, row.num_bytes)
            return str(local_tar(folder, row, None).resolve())

        rows = manifest.splits[name].shards if name in manifest.splits else ()
        return cls(
            str((folder / MANIFEST).resolve()), tuple(row.given or uri(row) for row in rows),
            np.array([row.num_images for row in rows], dtype=np.int64),
            tuple((str((folder / row.offsets_path).resolve()), row.offsets_sha256) for row in rows),
            given=manifest.left_out is not None,
        )  # fmt: skip

    @property
    def num_images(self) -> int:
        """Samples in the split."""
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(S + 1,) number of each shard's first sample, then the number of all samples."""
        return starts_of(self.counts)

    def read_offsets(self, shard: int) -> NDArray[np.int64]:
        """(n, 4) for the n samples of one shard: picture's offset and bytes, then its texts' (a json; or as `given`).

        Raises CorruptError: the tar's index is missing, damaged, or was replaced since.
        """
        path, sha256 = self.indexes[shard]
        offsets = read_offsets(Path(path), sha256)
        num_images = self.cut[0] if self.cut and shard == len(self.shards) - 1 else self.counts[shard]
        if offsets.shape != (num_images, 4):
            raise CorruptError(f"{path}: of another number of images than {MANIFEST} says; run `align shard` again")
        return offsets[: self.counts[shard]]
