"""Writes data/shards: tars and indexes as `align.formats.shards` describes them, and their manifest."""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from json.encoder import encode_basestring as _quoted
from pathlib import Path

from align.durable.files import replaced, write_bytes, write_text
from align.formats.shards import (
    MANIFEST,
    Manifest,
    Sample,
    Shard,
    Split,
    SplitName,
    digest_of,
    index_bytes,
)
from align.formats.tar import TarWriter

#: Bytes that are hashed and written together.
_BLOCK_BYTES = 1 << 20
#: Most blocks that wait for the thread.
_AHEAD = 2
#: Bytes after which a flush to disk begins, so that little is left to flush at the end.
_SYNC_BYTES = 1 << 22


def write_tar(target: Path, samples: Iterable[Sequence[tuple[str, bytes]]]) -> tuple[str, list[list[int]]]:
    """Writes a tar whole or not at all. Equal samples give equal bytes: no time, no owner.

    Args:
        target: the file; its folder is made.
        samples: name and bytes of the members of each, written in this order.

    Returns:
        Hex sha256 of the file, and the offsets of each sample's members.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target, on_disk=False) as beside, beside.open("wb", buffering=0) as file, _Hashed(file) as hashed:
        writer = TarWriter(hashed, mode=0o444)
        offsets = [writer.add(*members) for members in samples]
        writer.close()
        return hashed.finish(), offsets


def write_shard(directory: Path, path: str, samples: Iterable[Sample]) -> Shard:
    """Writes one tar and then its index, each whole or not at all.

    Args:
        directory: the folder that will hold the manifest.
        path: relative to `directory`.
        samples: written in this order.
    """
    sizes, num_texts = list[tuple[int, int]](), list[int]()

    def members() -> Iterator[Sequence[tuple[str, bytes]]]:
        for sample in samples:
            key, info = sample.key, _json(sample)
            sizes.append((len(sample.image), len(info)))
            num_texts.append(len(sample.texts))
            yield (f"{key}.jpg", sample.image), (f"{key}.json", info), (f"{key}.txt", sample.texts[0].encode())

    sha256, places = write_tar(directory / path, members())
    offsets = [(at[0], jpg, at[1], info) for at, (jpg, info) in zip(places, sizes, strict=True)]
    index = index_bytes(offsets)
    shard = Shard(
        path=path, sha256=sha256, num_bytes=(directory / path).stat().st_size, num_images=len(offsets),
        num_pairs=sum(num_texts), offsets_sha256=hashlib.sha256(index).hexdigest(),
    )  # fmt: skip
    write_bytes(directory / shard.offsets_path, index)
    return shard


def _json(row: Sample) -> bytes:
    """The result of `json.dumps(..., ensure_ascii=False, sort_keys=True)`, in a third of the time."""
    keys, texts = ", ".join(map(_quoted, row.keys)), ", ".join(map(_quoted, row.texts))
    ids = f'"image_id": {_quoted(row.image_id)}, "key": {_quoted(row.key)}'
    return f'{{{ids}, "keys": [{keys}], "texts": [{texts}]}}'.encode()


class _Hashed:
    """A file whose blocks one thread hashes and writes, and another flushes, while the caller makes the next block.

    Memory: three blocks, which are reused.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._block = io.BytesIO()
        self._num_unsynced = 0
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._syncs = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._writing: deque[tuple[Future[None], io.BytesIO]] = deque()
        self._syncing: Future[None] | None = None

    def __enter__(self) -> _Hashed:
        return self

    def __exit__(self, *_: object) -> None:
        self._writes.shutdown()
        self._syncs.shutdown()

    def writelines(self, lines: Iterable[bytes], /) -> None:
        """Appends all lines."""
        self._block.writelines(lines)
        if self._block.tell() >= _BLOCK_BYTES:
            self._submit_block()

    def finish(self) -> str:
        """Writes and flushes the rest. Returns the hex sha256 of the whole file."""
        self._submit_block()
        for writing, _ in self._writing:
            writing.result()
        if self._syncing is not None:
            self._syncing.result()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _submit_block(self) -> None:
        self._num_unsynced += self._block.tell()
        self._writing.append((self._writes.submit(self._write, self._block), self._block))
        if len(self._writing) <= _AHEAD:
            self._block = io.BytesIO()
        else:
            writing, self._block = self._writing.popleft()
            writing.result()
            self._block.seek(0)
        if self._num_unsynced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            self._syncing = self._syncs.submit(os.fdatasync, self._file.fileno())
            self._num_unsynced = 0

    def _write(self, block: io.BytesIO) -> None:
        with block.getbuffer() as whole, whole[: block.tell()] as data:
            self._digest.update(data)
            written = 0
            while written < len(data):
                with data[written:] as left:
                    written += self._file.write(left)


def join_manifest(folder: Path, image_px: int, entries: Mapping[SplitName, Sequence[Path]]) -> Manifest:
    """Writes `manifest.json` from files that hold one `Shard` each.

    Args:
        folder: of the manifest.
        image_px: side of the images.
        entries: split -> files that `write_entry` wrote.
    """
    read = {name: (Shard.model_validate_json(path.read_bytes()) for path in paths) for name, paths in entries.items()}
    splits = {name: Split.of(rows) for name, rows in read.items()}
    digest = digest_of(shard for split in splits.values() for shard in split.shards)
    manifest = Manifest(image_px=image_px, digest=digest, splits=splits)
    write_text(folder / MANIFEST, manifest.model_dump_json(exclude_none=True) + "\n")
    return manifest


def write_entry(shard: Shard, path: Path) -> None:
    """Writes one shard's row of the manifest, for `join_manifest`, atomically."""
    write_text(path, shard.model_dump_json())
