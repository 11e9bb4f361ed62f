"""A model and the index that was made with it, loaded and tried: they answer requests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from align.config.infrastructure import StoreConfig
from align.errors import AlignError, CorruptError, DataError
from align.formats.image_index import ImageIndex, IndexedImage
from align.formats.model_folder import TOKENIZER, TOKENIZER_FOLDER, model_digest, origin
from align.formats.shards import MANIFEST, Shard, local_tar, read_manifest
from align.services.s3.store import fetcher
from align.services.vector_index import VectorIndex

if TYPE_CHECKING:  # imports torch, which a server without a champion does not need
    from align.model.embedder import Embedder

_TRIED_WITH = "a red fox"
#: Texts as long as a query's: characters of many kinds alone, followed by another, and in turn with others.
_TRIAL = """
import resource, sys
from tokenizers import Tokenizer
for kind, most in ((resource.RLIMIT_CPU, int(sys.argv[2])), (resource.RLIMIT_AS, int(sys.argv[3]))):
    resource.setrlimit(kind, (most, most))
tokenizer = Tokenizer.from_file(sys.argv[1])
for one in [*map(chr, range(32, 127)), *"\\n\\t\\u00e9\\u0301\\u8d64\\u0661\\U0001f98a"]:
    for text in (one * 1000, one * 999 + "!", one * 999 + "b", (one + " ") * 500, (one + "a1.") * 250):
        tokenizer.encode(text)
"""
#: Its limits; a tokenizer of 250,000 words takes 2 CPU seconds.
_TRIAL_CPU_S, _TRIAL_S, _TRIAL_BYTES = 20, 300, 4 << 30


@dataclass(frozen=True)
class Release:
    """What is served: a registered version, or this checkout's own model.

    Attributes:
        digest: names the model together with the index.
        name: of the registered model; of a checkout's own, its folder.
        version: its number; None for a checkout's own.
        run_id: the MLflow run that made it; None as above.
        tags: of the version.
        warnings: what a person should know of it.
    """

    digest: str
    name: str
    version: int | None = None
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

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


@dataclass(frozen=True, eq=False)
class Served:
    """A release in memory. Nothing of it changes, so requests use one from their start to their end.

    Attributes:
        release: what it is.
        embedder: the model.
        index: its index, without what is taken down.
        take_downs: names the list of what is taken down; None: there is none.
        origin: what trained the model, for people.
    """

    release: Release
    embedder: Embedder
    index: ImageIndex
    take_downs: str | None = None
    origin: str = ""


def require_quick(model: Path) -> None:
    """Tries a model's tokenizer in a process of its own, before strangers' texts reach it in ours.

    Raises DataError: it takes too long, or ends its process. A pattern such as `(a|a|aa)+$` takes 2^n steps.
    """
    for file in (model / TOKENIZER, model / TOKENIZER_FOLDER / TOKENIZER):
        if file.is_file():
            trial = [sys.executable, "-I", "-c", _TRIAL, str(file), str(_TRIAL_CPU_S), str(_TRIAL_BYTES)]
            try:
                # a session of its own: Ctrl-C ends the service, and says nothing of a tokenizer
                subprocess.run(trial, check=True, capture_output=True, timeout=_TRIAL_S, start_new_session=True)
            except subprocess.SubprocessError:
                raise DataError(
                    f"{file}: fails, or takes more than {_TRIAL_CPU_S} s for ordinary texts; take another tokenizer"
                ) from None


def load(release: Release, folders: Folders) -> Served:
    """Loads a model and its index, and asks both for something.

    Raises:
        AlignError: a folder is missing or damaged, they do not belong together, or no answer comes out.
    """
    from align.model.embedder import Embedder

    index = ImageIndex.load(folders.index, VectorIndex.load)
    embedder = Embedder.load(folders.model)  # before its digest is asked for: a damaged model is no fault of its index
    if not folders.vouched and index.header.model_digest != model_digest(folders.model):
        raise DataError(f"{folders.index}: was made with another model than {folders.model}; run `align index` again")
    if not index.items:
        raise DataError(f"{folders.index}: holds no image")
    if embedder.width != index.header.width:
        raise CorruptError(
            f"{folders.index}: its vectors have {index.header.width} numbers, those of the model {embedder.width}"
        )
    vector = embedder.embed_texts([_TRIED_WITH])[0]
    if not np.isfinite(vector).all() or not index.search(vector, 1):
        raise DataError(f"{folders.model}: the query {_TRIED_WITH!r} has no answer; the model or its index is broken")
    return Served(release, embedder, index, origin=origin(folders.model))


class Pictures:
    """The pictures of an index: its thumbnails, and the larger ones of the shards, here or in the object store.

    The folder's manifest is compared once with what was indexed.
    """

    def __init__(self, shards: Path, config: StoreConfig) -> None:
        self._shards, self._fetch = shards, fetcher(config)

    def missing_because(self, served: Served) -> str | None:
        """Why the pictures cannot be shown; None if they can."""
        tars = {} if served.index.has_thumbnails else self._tars(served)
        return tars if isinstance(tars, str) else None

    def read(self, served: Served, item: IndexedImage, *, large: bool = False) -> bytes:
        """A JPEG: the thumbnail; with `large`, or without thumbnails, the picture of the shards, if they are here.

        Raises AlignError: it is not here; the message says why.
        """
        has_thumbnails = served.index.has_thumbnails
        tars = "" if has_thumbnails and not large else self._tars(served)
        if not isinstance(tars, str):
            return item.image(local_tar(self._shards, tars[item.shard], self._fetch))
        if not has_thumbnails:
            raise DataError(tars)
        return served.index.thumbnail(item.key)

    def _tars(self, served: Served) -> dict[str, Shard] | str:
        """The tars of what was indexed, or why they are not here."""
        file = self._shards / MANIFEST
        changed = file.stat().st_mtime_ns if file.is_file() else None
        return _compared(self._shards, served.index.header.shards_digest, changed)


@lru_cache(maxsize=2)
def _compared(shards: Path, wanted: str, changed: int | None) -> dict[str, Shard] | str:
    try:
        manifest = read_manifest(shards)
    except AlignError as error:
        return f"the pictures are not here: {error}"
    if manifest.digest != wanted:
        return f"the pictures are not here: {shards} has another version of the data than the index"
    return manifest.tars
