"""A model and the index that was made with it, loaded and tried: what requests are answered from."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from align.config.store import StoreConfig
from align.errors import AlignError, CorruptError, DataError
from align.formats.image_index import Hit, ImageIndex, IndexedImage
from align.formats.shards import MANIFEST, Shard, read_manifest
from align.services.store import fetcher
from align.services.vector_index import VectorIndex

if TYPE_CHECKING:  # imports torch, which a server without a champion does without
    from align.model.embedder import Embedder

_TRIED_WITH = "a red fox"
#: With a filter, this many of the nearest images are looked through.
_MAX_LOOKED_AT = 100_000


@dataclass(frozen=True)
class Release:
    """What is served: a registered version, or this checkout's own model.

    Attributes:
        digest: names the pair of model and index.
        name: of the registered model; of a checkout's own, its folder.
        version: its number; None for a checkout's own.
        run_id: the MLflow run that made it; None as above.
        tags: of the version.
    """

    digest: str
    name: str
    version: int | None = None
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """For people."""
        return f"{self.name} version {self.version}" if self.version is not None else f"the model in {self.name}"


@dataclass(frozen=True)
class Folders:
    """Where a release lies on this disk.

    Attributes:
        model: a model folder.
        index: an index.
        vouched: whether the index was found to be of this model when it was registered.
    """

    model: Path
    index: Path
    vouched: bool = False


class Served:
    """A release in memory. Nothing of it changes, so requests use one from their start to their end.

    Attributes:
        release: what it is.
        embedder: the model.
        index: its index.
    """

    def __init__(self, release: Release, embedder: Embedder, index: ImageIndex) -> None:
        self.release = release
        self.embedder = embedder
        self.index = index
        self._items = {item.key: item for item in index.items}

    def item(self, key: str) -> IndexedImage:
        """The indexed image with this key. Raises DataError if there is none."""
        try:
            return self._items[key]
        except KeyError:
            raise DataError(f"no image with key {key!r} in the index") from None

    def has(self, key: str) -> bool:
        """Whether an image has this key."""
        return key in self._items

    def nearest(
        self, vector: NDArray[np.float32], k: int, *, exclude: Sequence[str], split: str | None, words: Sequence[str]
    ) -> tuple[list[Hit], bool]:
        """The k nearest images that pass the filters, and whether all images were looked through that had to be.

        Args:
            vector: (width,), L2-normalised.
            k: at least 1.
            exclude: keys of images that are left out.
            split: only images of this one; None: of any.
            words: only images whose texts have each of these, as whole words, in upper or lower case.
        """
        if split is None and not words:
            return self.index.search(vector, k, exclude=exclude), True
        patterns = [re.compile(rf"\b{re.escape(word.casefold())}\b") for word in words]
        total, looked_at = len(self.index.items), 4 * k
        while True:
            near = self.index.search(vector, min(looked_at, total, _MAX_LOOKED_AT), exclude=exclude)
            hits = [hit for hit in near if _passes(hit.item, split, patterns)]
            if len(hits) >= k or looked_at >= total:
                return hits[:k], True
            if looked_at >= _MAX_LOOKED_AT:
                return hits, False
            looked_at *= 8


def _passes(item: IndexedImage, split: str | None, patterns: Sequence[re.Pattern[str]]) -> bool:
    if split is not None and item.split != split:
        return False
    texts = [text.casefold() for text in item.texts]
    return all(any(pattern.search(text) for text in texts) for pattern in patterns)


def load(release: Release, folders: Folders) -> Served:
    """Loads a model and its index, and asks both for something.

    Raises:
        AlignError: a folder is missing or damaged, they do not belong together, or no answer comes out.
    """
    from align.model.embedder import Embedder, model_digest

    index = ImageIndex.load(folders.index, VectorIndex.load)
    if not folders.vouched and index.header.model_digest != model_digest(folders.model):
        raise DataError(f"{folders.index}: was made with another model than {folders.model}; run `align index` again")
    if not index.items:
        raise DataError(f"{folders.index}: holds no image")
    embedder = Embedder.load(folders.model)
    if embedder.width != index.header.width:
        raise CorruptError(
            f"{folders.index}: its vectors have {index.header.width} numbers, those of the model {embedder.width}"
        )
    vector = embedder.embed_texts([_TRIED_WITH])[0]
    if not np.isfinite(vector).all() or not index.search(vector, 1):
        raise DataError(f"{folders.model}: the query {_TRIED_WITH!r} has no answer; the model or its index is broken")
    return Served(release, embedder, index)


class Pictures:
    """The pictures of an index, from the shards that were indexed: here, or in the object store.

    The folder's manifest is compared once with what was indexed.
    """

    def __init__(self, shards: Path, config: StoreConfig) -> None:
        self._shards, self._fetch = shards, fetcher(config)
        self._lock = threading.Lock()
        self._known: tuple[str, str | None, dict[str, Shard]] = ("", None, {})

    def missing_because(self, served: Served) -> str | None:
        """Why the pictures cannot be shown; None if they can."""
        return self._compared(served.index.header.shards_digest)[0]

    def read(self, served: Served, item: IndexedImage) -> bytes:
        """A JPEG. Raises AlignError where it is not here, and says why."""
        reason, shards = self._compared(served.index.header.shards_digest)
        if reason is not None:
            raise DataError(reason)
        if self._fetch is None or (self._shards / item.shard).is_file():
            return item.image(self._shards)
        shard = shards[item.shard]
        with self._fetch(shard.sha256, shard.num_bytes).open("rb") as tar:
            tar.seek(item.offset_bytes)
            return tar.read(item.size_bytes)

    def _compared(self, wanted: str) -> tuple[str | None, dict[str, Shard]]:
        stamp = f"{wanted} {_changed(self._shards / MANIFEST)}"
        with self._lock:
            if self._known[0] != stamp:
                self._known = (stamp, *self._compare(wanted))
            return self._known[1:]

    def _compare(self, wanted: str) -> tuple[str | None, dict[str, Shard]]:
        try:
            manifest = read_manifest(self._shards)
        except AlignError as error:
            return f"the pictures are not here: {error}", {}
        if manifest.digest != wanted:
            return f"the pictures are not here: {self._shards} has another version of the data than the index", {}
        return None, {shard.path: shard for split in manifest.splits.values() for shard in split.shards}


def _changed(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
