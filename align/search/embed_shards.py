"""Embeds the images of data/shards, a tar at a time: a task writes the vectors, descriptions and thumbnails of its tar.

Batches end with their tar, so its vectors are the same whoever computes them, and in whatever order.

    .embedded/NAME/images.arrow   a row for each image of a tar
    .model/                       the model, for the machines of a cluster
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.durable.files import replaced
from align.durable.steps import Step, Work
from align.errors import CorruptError
from align.formats.image_index import IndexedImage
from align.formats.indexed_images import ImagesWriter
from align.formats.shards import Manifest, Shard, ShardTask, local_tar
from align.formats.tar_members import DamagedTar, read_members
from align.interfaces.executor import Executor
from align.interfaces.store import FetchTar
from align.model.embedder import IMAGES_AT_ONCE, Embedder, Encoder
from align.pairs import picture

#: Images that are in memory at a time: whole batches.
_SAMPLES_AT_ONCE = 64 * IMAGES_AT_ONCE
#: Of thumbnails: one of 160 px takes about 3 kB.
_QUALITY = 65
#: The results in the work folder: hidden, since what is not is of the index.
RESULTS = _EMBEDDED, _MODEL = ".embedded", ".model"
_IMAGES = "images.arrow"


@dataclass(frozen=True)
class EmbedWork:
    """The work folder, and what every task needs. Can be pickled.

    Attributes:
        work: the results of the steps.
        shards: data/shards.
        fetch: for tars that are not in the folder but in an object store; None without one.
        thumbnail_px: longest side of a thumbnail; 0: there are none.
    """

    work: Work
    shards: Path
    fetch: FetchTar | None
    thumbnail_px: int


def embed_shards(work: EmbedWork, executor: Executor, manifest: Manifest, model: Path, encoder: Encoder) -> None:
    """Embeds the tars that are not embedded yet.

    Args:
        work: the work folder.
        executor: does it.
        manifest: of the shards.
        model: the model's folder, for other machines.
        encoder: the same model.

    Raises:
        DataError: a tar is missing, or an image does not decode.
        CorruptError: a tar's bytes do not match the manifest.
        ServiceError: a server is unavailable.
    """
    resource: Callable[[Work], AbstractContextManager[Encoder]] = partial(_given, encoder)
    if executor.is_cluster:
        # a copy: DVC's files may be links to a cache that only this machine has
        work.work.make(_MODEL, lambda out: shutil.copytree(model, out, dirs_exist_ok=True))
        resource = _opened
    step = Step(_EMBEDDED, partial(_embed_tar, work), "index: shards", resource=resource)
    work.work.run(step, {task.name: task for task in manifest.tasks}, executor)


def add_images(work: EmbedWork, manifest: Manifest, images: ImagesWriter) -> Iterator[NDArray[np.float32]]:
    """Yields the vectors of one tar after the other, once its images were added. Memory holds one tar's."""
    for task in manifest.tasks:
        with (work.work.folder / _EMBEDDED / task.name / _IMAGES).open("rb") as file:
            table = pa.ipc.open_file(file).read_all()
        if not len(table):
            continue
        for row in table.drop_columns(["vector"]).to_pylist():
            place = (task.split, task.shard.path, row["offset_bytes"], row["size_bytes"])
            item = IndexedImage(row["key"], row["image_id"], tuple(row["texts"]), *place, tuple(row["keys"]))
            images.add(item, row["thumbnail"])
        yield np.frombuffer(b"".join(table["vector"].to_pylist()), "<f4").reshape(len(table), -1)


def thumbnail(image: bytes, side_px: int) -> bytes:
    """A JPEG of at most `side_px` per side. Equal images give equal bytes with the same version of Pillow.

    Args:
        image: an encoded image.
        side_px: 0 makes none: the result is empty.

    Raises:
        PictureError: it does not decode.
    """
    if not side_px:
        return b""
    return picture.thumbnail(image, side_px, quality=_QUALITY, optimize=True)


def _given(encoder: Encoder, _: Work) -> AbstractContextManager[Encoder]:
    return nullcontext(encoder)


@contextmanager
def _opened(here: Work) -> Iterator[Encoder]:
    """The model on a machine of a cluster."""
    here.fetch([_MODEL])
    yield Embedder.load(here.folder / _MODEL)


def _embed_tar(work: EmbedWork, encoder: Encoder, out: Path, task: ShardTask) -> None:
    write_table(_embedded(work, encoder, task), out / _IMAGES)


def _embedded(work: EmbedWork, encoder: Encoder, task: ShardTask) -> pa.Table:
    samples, tables = _samples(work, task.shard), [_SCHEMA.empty_table()]
    while some := list(islice(samples, _SAMPLES_AT_ONCE)):
        vectors = encoder.embed_images(image for _, image in some)
        rows = [
            row | {"vector": np.asarray(vector, "<f4").tobytes(), "thumbnail": thumbnail(image, work.thumbnail_px)}
            for (row, image), vector in zip(some, vectors, strict=True)
        ]
        tables.append(pa.Table.from_pylist(rows, _SCHEMA))
    return pa.concat_tables(tables)


def _samples(work: EmbedWork, shard: Shard) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The json of each sample, with the place of its image, and the image. The tar's index may be elsewhere."""
    tar = local_tar(work.shards, shard, work.fetch)
    with tar.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise CorruptError(f"{tar}: sha256 does not match the manifest; run `align shard` again")
        image, place = b"", dict[str, int]()
        try:
            for member in read_members(file):
                file.seek(member.offset)
                if member.name.endswith(".jpg"):
                    image = file.read(member.size)
                    place = {"offset_bytes": member.offset, "size_bytes": member.size}
                elif member.name.endswith(".json"):
                    yield json.loads(file.read(member.size)) | place, image
        except DamagedTar as error:
            raise CorruptError(f"{tar}: {error}; run `align shard` again") from None


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a piece, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with replaced(path, on_disk=False) as beside, pa.ipc.new_file(str(beside), table.schema) as writer:
        writer.write_table(table)


_SCHEMA = pa.schema([
    ("key", pa.string()), ("image_id", pa.string()), ("texts", pa.list_(pa.string())), ("keys", pa.list_(pa.string())),
    ("offset_bytes", pa.int64()), ("size_bytes", pa.int64()), ("thumbnail", pa.binary()), ("vector", pa.binary()),
])  # fmt: skip
