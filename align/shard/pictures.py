"""The store of pictures for `shard.materialise: false`: those of data/raw, resized once for all filters.

`store.cache`/pictures/KEY has a piece for each raw tar: a tar of its pictures, NAME.tar, unless that is in
`store.objects`; where they are in it, NAME.npy; and NAME.json, written last. KEY is of what decides how pictures are
resized, NAME of the raw tar. data/shards gets hard links to these tars, so another filter writes lists alone, and what
DVC keeps of two recipes has each picture once. The folder may be removed at any time; the next run makes it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.config.infrastructure import StoreConfig
from align.config.shard import ShardConfig
from align.durable.files import link, replaced, sha256_file, write_text
from align.durable.pieces import Piece, Pieces
from align.durable.processes import in_threads
from align.durable.work import key_of
from align.formats.json_file import parse
from align.formats.raw import RawShard, image_spans
from align.formats.shards import PICTURES, StoredTar
from align.interfaces.executor import Executor
from align.pairs.picture import MAX_PIXELS, PictureError
from align.project import provenance
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, keep_tar
from align.services.store_work import open_work
from align.shard.gather import resize
from align.shard.image_spans import span_rows
from align.shard.writer import write_tar

#: Threads of a task that resize.
_THREADS = 2


@dataclass(frozen=True)
class PictureStore:
    """The store. Can be pickled.

    Attributes:
        pieces: its folder, and who shares it.
        names: of the pieces, one for each raw tar.
        uris: where the raw tars are.
        config, store: how pictures are resized, and where tars go.
    """

    pieces: Pieces
    names: Sequence[str]
    uris: Sequence[str]
    config: ShardConfig
    store: StoreConfig

    @classmethod
    def open(
        cls, raw: Sequence[RawShard], uris: Sequence[str], config: ShardConfig, store: StoreConfig, runner: str
    ) -> PictureStore:
        """The store for these raw tars; what is missing in it is made by `fill`. Raises as `open_work`."""
        key = key_of(config.image_px, config.jpeg_quality, store.objects, provenance.digest(__name__))
        folder = store.cache.absolute() / PICTURES / key[:16]
        folder.mkdir(parents=True, exist_ok=True)
        # A table has the sha256 of each picture; without a manifest, the tar's size must do for the rest.
        names = [
            key_of(one.sha256 or one.tar.stat().st_size, one.table_sha256 or sha256_file(one.table))[:32] for one in raw
        ]
        return cls(Pieces(folder, open_work(store, runner, PICTURES, key)), names, uris, config, store)

    def here(self) -> PictureStore:
        """The same in the folder of this machine. A task of a cluster begins with this."""
        return replace(self, pieces=self.pieces.here())

    def fill(self, executor: Executor) -> None:
        """Makes what is missing, or is not what its entry says.

        Raises:
            DataError, CorruptError: a raw tar is cut off, or not a tar.
            ServiceError: the object store is unavailable.
        """
        pieces = {self.piece(number): number for number in range(len(self.names))}
        for number in pieces.values():
            entry = self._file(number, "json")
            if entry.is_file() and self.store.objects is None and not self._is_whole(number):
                entry.unlink()
        self.pieces.fill(executor, partial(_resize_tar, self), pieces, "shard: raw tars resized")

    def tar(self, number: int) -> StoredTar:
        """The tar of pictures of a raw tar, as a list of data/shards names it."""
        path = self._file(number, "json")
        return parse(StoredTar, path.read_bytes(), path, "remove it").model_copy(
            update={"path": f"{PICTURES}/{number:05d}.tar"}
        )

    def uri(self, number: int) -> str:
        """Where it is: a path or a URI."""
        if self.store.objects is None:
            return str(self._file(number, "tar"))
        return Objects(self.store).uri(self.tar(number).sha256)

    def spans(self, number: int) -> NDArray[Any]:
        """SPAN of its pictures, by their image_id."""
        rows: NDArray[Any] = np.load(self._file(number, "npy"), allow_pickle=False)
        rows["tar"] = number
        return rows

    def link(self, number: int, folder: Path) -> None:
        """Puts the tar into data/shards, unless it is in the object store; costs no bytes on the same disk."""
        if self.store.objects is None:
            target = folder / self.tar(number).path
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            link(self._file(number, "tar"), target)

    def _file(self, number: int, ending: str) -> Path:
        return self.pieces.folder / f"{self.names[number]}.{ending}"

    def _is_whole(self, number: int) -> bool:
        tar = self._file(number, "tar")
        return tar.is_file() and tar.stat().st_size == self.tar(number).num_bytes

    def piece(self, number: int) -> Piece:
        """What is made of a raw tar."""
        name, folder = self.names[number], self.pieces.folder
        files = (f"{name}.tar", f"{name}.npy")
        return Piece(name, f"{name}.json", lambda: [file for file in files if (folder / file).exists()])


def _resize_tar(work: PictureStore, _: None, number: int) -> None:
    work = work.here()
    work.pieces.make(work.piece(number), partial(_write, work, number))


def _write(work: PictureStore, number: int) -> None:
    """Writes the pictures of a raw tar that decode, each once, its index, and last its entry."""
    path, sizes = work._file(number, "tar"), dict[str, int]()

    def resized(picture: tuple[str, bytes]) -> tuple[str, bytes] | None:
        try:
            return picture[0], resize(picture[1], work.config.image_px, work.config.jpeg_quality, MAX_PIXELS)
        except PictureError:
            return None  # the filter drops it, too

    def members() -> Iterator[Sequence[tuple[str, bytes]]]:
        for picture in in_threads(resized, _pictures(work, number), _THREADS):
            if picture is not None:
                sizes[picture[0]] = len(picture[1])
                yield [(f"{picture[0]}.jpg", picture[1])]

    sha256, offsets = write_tar(path, members())
    rows = span_rows(((image_id, at[0], size) for at, (image_id, size) in zip(offsets, sizes.items(), strict=True)), 0)
    with replaced(work._file(number, "npy")) as beside, beside.open("wb") as index:
        np.save(index, rows)
    entry = StoredTar(path=path.name, sha256=sha256, num_bytes=path.stat().st_size)
    keep_tar(path, sha256, work.store)
    write_text(work._file(number, "json"), entry.model_dump_json())


def _pictures(work: PictureStore, number: int) -> Iterator[tuple[str, bytes]]:
    """(image_id, bytes) of each different picture of a raw tar."""
    seen, uri = set[bytes](), work.uris[number]
    with StoreFiles(work.store).open(uri) as file:
        for _, offset, size in image_spans(file, uri):
            file.seek(offset)
            data = file.read(size)
            digest = hashlib.sha256(data)
            if digest.digest() not in seen:
                seen.add(digest.digest())
                yield digest.hexdigest(), data
