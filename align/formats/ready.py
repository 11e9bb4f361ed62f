"""A ready search: a folder with a small model, its index with thumbnails, and a list of their digests.

    ready/
      manifest.json   sha256 of every file; written last
      model/          a model folder
      index/          see `align.formats.image_index`

Nothing in it is used before every byte has been compared with the list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from align.durable.files import MARK, sha256_file, to_json, write_text
from align.errors import CorruptError, DataError
from align.formats.json_file import StoredModel, read_if_exists

MANIFEST, MODEL, INDEX = "manifest.json", "model", "index"
_REMEDY = "take the folder from git again, or run `align ready`"


class _Manifest(StoredModel):
    """manifest.json: path in the folder -> hex sha256, of all files but this one and the mark."""

    schema_version: Literal[3] = 3
    sha256: dict[str, str]


def write_manifest(folder: Path) -> None:
    """Writes manifest.json."""
    write_text(folder / MANIFEST, to_json(_Manifest(sha256=_digests(folder)).model_dump()))


def require_whole(folder: Path) -> None:
    """Compares every file with the list. Raises DataError if there is no ready search; FormatError if the list has
    another schema_version or layout; CorruptError if a file is missing, changed, or not in the list.
    """
    manifest = read_if_exists(_Manifest, folder / MANIFEST, _REMEDY)
    if manifest is None:
        raise DataError(f"{folder}: no ready search here ({MANIFEST} is missing); run `align ready`")
    found = _digests(folder)
    for name in sorted({*found, *manifest.sha256}):
        if found.get(name) != manifest.sha256.get(name):
            problem = f"its bytes are not those that {MANIFEST} names"
            if name not in found or name not in manifest.sha256:
                problem = f"not in {MANIFEST}" if name in found else "missing"
            raise CorruptError(f"{folder / name}: {problem}; {_REMEDY}")


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files if path != folder / MANIFEST}
