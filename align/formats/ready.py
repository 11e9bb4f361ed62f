"""A ready search: a folder with a small model, its index with thumbnails, and a manifest with their digests.

    ready/
      manifest.json   sha256 and size of every file, and what the two were made from; written last
      model/          a model folder
      index/          see `align.formats.image_index`

Nothing in it is used before every byte has been compared with the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.durable.files import MARK, sha256_file, to_json, write_text
from align.errors import CorruptError, DataError
from align.formats.json_file import StoredModel, parse

MANIFEST, MODEL, INDEX = "manifest.json", "model", "index"
_REMEDY = "take the folder from git again, or run `align ready`"


class ReadyFile(StoredModel):
    """A file: its length and hex sha256."""

    size_bytes: int
    sha256: str


class MadeFrom(StoredModel):
    """Where a ready search comes from.

    Attributes:
        revision: git revision of the code, None outside git; with `-dirty` at its end if its files were changed.
        dvc_lock: sha256 of dvc.lock, which names the run's data, parameters and results; None if there is none.
        model_digest: of the model as it was trained (`align.formats.model_folder.model_digest`).
        package_digest: of the packaged model, which names its version in MLflow; None if it was not packaged.
        shards_digest: of the shards.
        num_images: in the index.
    """

    revision: str | None
    dvc_lock: str | None
    model_digest: str
    package_digest: str | None
    shards_digest: str
    num_images: int


class ReadyManifest(StoredModel):
    """manifest.json.

    Attributes:
        files: path in the folder -> the file, of all but this one.
        made_from: see there.
        precision: of the stored weights.
        largest_difference: the largest difference of a coordinate from the trained model's embeddings.
        same_of_ten: share of a text's ten nearest images that the trained model has, too.
    """

    schema_version: Literal[2] = 2
    files: dict[str, ReadyFile]
    made_from: MadeFrom
    precision: Literal["float16", "float32"]
    largest_difference: float
    same_of_ten: float


@dataclass(frozen=True)
class Ready:
    """A ready search whose bytes are what its manifest says.

    Attributes:
        model: a model folder.
        index: an index that was made for it.
        manifest: what it was made from.
    """

    model: Path
    index: Path
    manifest: ReadyManifest


def describe_files(folder: Path) -> dict[str, ReadyFile]:
    """Every file of a folder but the manifest and the mark: path in the folder -> what it is."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK)
    return {
        path.relative_to(folder).as_posix(): ReadyFile(size_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in files
        if path != folder / MANIFEST
    }


def write_manifest(folder: Path, manifest: ReadyManifest) -> None:
    """Writes manifest.json."""
    write_text(folder / MANIFEST, to_json(manifest.model_dump(mode="json")))


def read_ready_manifest(folder: Path) -> ReadyManifest:
    """Reads manifest.json; the other files are not looked at. Raises DataError or FormatError as `open_ready`."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"{folder}: no ready search here ({MANIFEST} is missing); run `align ready`") from None
    return parse(ReadyManifest, data, path, _REMEDY)


def open_ready(folder: Path) -> Ready:
    """Compares every file with the manifest.

    Raises:
        DataError: there is no ready search.
        FormatError: the manifest has another schema_version or layout.
        CorruptError: a file is missing, cut off, changed, or not in the manifest.
    """
    manifest = read_ready_manifest(folder)
    found = describe_files(folder)
    for name in sorted({*found, *manifest.files}):
        here, wanted = found.get(name), manifest.files.get(name)
        if here == wanted:
            continue
        if here is None or wanted is None:
            problem = "missing" if here is None else f"not in {MANIFEST}"
        elif here.size_bytes != wanted.size_bytes:
            problem = f"{here.size_bytes:,} bytes, not {wanted.size_bytes:,}"
        else:
            problem = "its bytes have changed"
        raise CorruptError(f"{folder / name}: {problem}; {_REMEDY}")
    return Ready(folder / MODEL, folder / INDEX, manifest)
