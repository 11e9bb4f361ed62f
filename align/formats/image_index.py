"""The format of `data/index`: which images are indexed, where their bytes are stored, and their vectors.

`vectors.faiss` holds one vector per image; row i of `items.parquet` describes vector i; `index.json` names the model
and the shards that both belong to. A search with another model or over other shards is an error, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from align.errors import CorruptError, DataError, FormatError
from align.files import replace_directory, to_json, write_text
from align.protocols.vectors import Vectors

_SCHEMA = pa.schema([
    ("key", pa.string()), ("image_id", pa.string()), ("texts", pa.list_(pa.string())), ("split", pa.string()),
    ("shard", pa.string()), ("offset_bytes", pa.int64()), ("size_bytes", pa.int64()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """One indexed image.

    Attributes:
        key: key of its tar sample.
        image_id: sha256 of its original bytes.
        texts: all its kept texts.
        split: train, val or test.
        shard: tar file, relative to the folder of the shards.
        offset_bytes: start of the JPEG in that file.
        size_bytes: length of the JPEG.
    """

    key: str
    image_id: str
    texts: tuple[str, ...]
    split: str
    shard: str
    offset_bytes: int
    size_bytes: int

    def image(self, shards: Path) -> bytes:
        """Reads its JPEG. Raises DataError if the shard is missing."""
        try:
            with (shards / self.shard).open("rb") as file:
                file.seek(self.offset_bytes)
                return file.read(self.size_bytes)
        except FileNotFoundError:
            raise DataError(f"{shards / self.shard}: missing, although the index names it; run `align shard`") from None


class IndexHeader(BaseModel):
    """index.json: the images and the model that the vectors were made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    model_digest: str
    shards_digest: str
    num_items: int
    width: int


@dataclass(frozen=True)
class Hit:
    """An image that a search returns, and its cosine with the query (image + text queries are normalised first)."""

    item: IndexedImage
    score: float


class ImageIndex:
    """The indexed images with their vectors."""

    def __init__(self, header: IndexHeader, items: list[IndexedImage], vectors: Vectors) -> None:
        self.header = header
        self.items = items
        self._vectors = vectors
        self._positions = {item.key: position for position, item in enumerate(items)}

    @classmethod
    def build(cls, items: list[IndexedImage], vectors: Vectors, *, model_digest: str, shards_digest: str) -> ImageIndex:
        """Makes an index of images and their vectors, in the same order."""
        header = IndexHeader(
            model_digest=model_digest, shards_digest=shards_digest, num_items=len(items), width=vectors.width
        )
        return cls(header, items, vectors)

    def save(self, directory: Path) -> None:
        """Writes the folder, whole or not at all; equal contents are equal bytes."""
        columns = {name: [getattr(item, name) for item in self.items] for name in _SCHEMA.names}
        with replace_directory(directory, "index") as part:
            pq.write_table(pa.table(columns, schema=_SCHEMA), part / "items.parquet", compression="zstd")
            self._vectors.save(part / "vectors.faiss")
            write_text(part / "index.json", to_json(self.header.model_dump()))

    @classmethod
    def load(cls, directory: Path, load_vectors: Callable[[Path], Vectors]) -> ImageIndex:
        """Reads what `save` wrote.

        Args:
            directory: the folder.
            load_vectors: reads the file of vectors.

        Raises:
            DataError: there is no index.
            FormatError: index.json has another schema_version or layout.
            CorruptError: the files do not belong together.
        """
        path = directory / "index.json"
        if not path.is_file():
            raise DataError(f"{directory}: there is no index; run `align index` first")
        try:
            header = IndexHeader.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FormatError(f"{path}: {where}: {first['msg']}; run `align index` again") from None
        vectors = load_vectors(directory / "vectors.faiss")
        rows: list[dict[str, Any]] = pq.read_table(directory / "items.parquet", schema=_SCHEMA).to_pylist()
        items = [IndexedImage(**{**row, "texts": tuple(row["texts"])}) for row in rows]
        if not len(vectors) == len(items) == header.num_items or vectors.width != header.width:
            raise CorruptError(f"{directory}: vectors, items and index.json disagree; run `align index` again")
        return cls(header, items, vectors)

    def vector(self, key: str) -> NDArray[np.float32]:
        """The stored (width,) vector of an image.

        Raises:
            DataError: no image has this key.
        """
        if key not in self._positions:
            raise DataError(f"no image with key {key!r} in the index; `align search TEXT` prints keys")
        return self._vectors.vector(self._positions[key])

    def search(self, query: NDArray[np.float32], k: int, *, exclude: Sequence[str] = ()) -> list[Hit]:
        """The k images nearest to one (width,) query, nearest first, without the images whose keys are excluded."""
        scores, ids = self._vectors.search(query[np.newaxis], k + len(exclude))
        hits = [
            Hit(self.items[position], float(score))
            for score, position in zip(scores[0], ids[0], strict=True)
            if self.items[position].key not in exclude
        ]
        return hits[:k]
