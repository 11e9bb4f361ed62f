"""The format of `align embed SHARDS --split ...`: the embeddings of every image and text of a split, by one model.

A folder of three arrays and `manifest.json`. Row i of `images.npy` is sample i of the split, in the order of its
shards; rows `starts[i]` to `starts[i + 1]` of `texts.npy` are the sample's texts, in the order of its json. So a
sample's number finds its rows, without a table of keys. The manifest names the shards by the digest of their bytes:
under this digest the same number is the same picture with the same texts, and no sample can be missing.

Embeddings are float16, L2-normalised before they are rounded: the rounding changes a cosine by about 3e-5. The arrays
are mapped into memory, not read: reading a row is one access, and the system's cache keeps its page for all ranks of a
machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from align.durable.files import sha256_file, to_json, write_text
from align.errors import CorruptError, DataError
from align.formats.json_file import StoredModel, parse
from align.formats.shards import SplitName

MANIFEST = "manifest.json"
IMAGES, TEXTS, STARTS = "images.npy", "texts.npy", "starts.npy"

_REMEDY = "run `align embed` again"


class EmbedsManifest(StoredModel):
    """manifest.json.

    Attributes:
        digest: names the embeddings: hex sha256 over all other values.
        model_digest: of the model, see `align.formats.model_folder.model_digest`.
        temperature: of the model.
        shards_digest: `digest` of the shards' manifest.
        width: of an embedding.
        sha256: file -> hex sha256.
    """

    schema_version: Literal[1] = 1
    digest: str
    model_digest: str
    temperature: float
    shards_digest: str
    split: SplitName
    width: int
    num_images: int
    num_pairs: int
    sha256: dict[str, str]

    def named(self) -> str:
        """The digest of the other values."""
        values = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(to_json(values).encode()).hexdigest()


@dataclass(frozen=True)
class StoredEmbeds:
    """A folder of embeddings. Picklable: the arrays are mapped where they are used.

    Attributes:
        folder: that `read_embeds` checked.
        manifest: of the folder.
    """

    folder: Path
    manifest: EmbedsManifest

    def read(self, sample: int, text: int, out: NDArray[np.float16]) -> None:
        """Reads two embeddings into `out`, (2, width): the image of a sample, and one of its texts."""
        images, texts, starts = self._arrays
        out[0] = images[sample]
        out[1] = texts[int(starts[sample]) + text]

    def verify(self) -> None:
        """Compares every byte with the manifest.

        Raises:
            CorruptError: a file was changed.
        """
        for name, expected in self.manifest.sha256.items():
            if sha256_file(self.folder / name) != expected:
                raise CorruptError(f"{self.folder / name}: sha256 does not match {MANIFEST}; {_REMEDY}")

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.int64]]:
        return _map(self.folder, self.manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredEmbeds, (self.folder, self.manifest)  # without the arrays: pickled, a mapped one is its content


def read_embeds(folder: Path) -> StoredEmbeds:
    """Opens a folder: the manifest is checked, and type and size of each array; their bytes by `StoredEmbeds.verify`.

    Raises:
        DataError: there is no manifest.
        FormatError: it has another schema_version or layout.
        CorruptError: the manifest was changed, or a file is missing, cut off, or not the array that it describes.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(
            f"{folder}: no embeddings of a split here ({MANIFEST} is missing); "
            "`align embed SHARDS --split train --out FOLDER` writes them"
        ) from None
    manifest = parse(EmbedsManifest, data, path, _REMEDY)
    if manifest.digest != manifest.named() or manifest.sha256.keys() != {IMAGES, TEXTS, STARTS}:
        raise CorruptError(f"{path}: was changed since it was written; {_REMEDY}")
    _map(folder, manifest)
    return StoredEmbeds(folder.resolve(), manifest)


def write_manifest(folder: Path, **values: Any) -> EmbedsManifest:
    """Writes manifest.json beside the three arrays, which are complete.

    Args:
        folder: that holds the arrays.
        values: of the manifest, but `digest`, `sha256` and `schema_version`.
    """
    sha256 = {name: sha256_file(folder / name) for name in (IMAGES, TEXTS, STARTS)}
    unnamed = EmbedsManifest(schema_version=1, digest="", sha256=sha256, **values)
    manifest = unnamed.model_copy(update={"digest": unnamed.named()})
    write_text(folder / MANIFEST, to_json(manifest.model_dump(mode="json")))
    return manifest


def _map(folder: Path, manifest: EmbedsManifest) -> tuple[Any, Any, Any]:
    width, images, pairs = manifest.width, manifest.num_images, manifest.num_pairs
    return (
        _mapped(folder / IMAGES, np.float16, (images, width)),
        _mapped(folder / TEXTS, np.float16, (pairs, width)),
        _mapped(folder / STARTS, np.int64, (images + 1,)),
    )


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise CorruptError(f"{path}: missing, though {MANIFEST} names it; {_REMEDY}") from None
    except (OSError, ValueError, EOFError) as error:
        raise CorruptError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); {_REMEDY}") from None
    if array.dtype != dtype or array.shape != shape:
        raise CorruptError(f"{path}: holds {array.dtype} {array.shape}, {MANIFEST} says {shape}; {_REMEDY}")
    return array
