"""The tars that the manifest.json of data/raw or of data/shards names: path, sha256 and size, and nothing else."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from align.errors import FormatError
from align.formats.shards import MANIFEST


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)  # other fields are ignored


class _RawShard(_Frozen):
    name: str
    tar_sha256: str
    tar_bytes: int


class _RawManifest(_Frozen):
    shards: tuple[_RawShard, ...]


class _Shard(_Frozen):
    path: str
    sha256: str
    num_bytes: int


class _Split(_Frozen):
    shards: tuple[_Shard, ...]


class _ShardManifest(_Frozen):
    splits: dict[str, _Split]


_EITHER: TypeAdapter[_ShardManifest | _RawManifest] = TypeAdapter(_ShardManifest | _RawManifest)


def parse_stored_tars(data: bytes, path: Path) -> dict[str, tuple[str, int]]:
    """Tar, relative to its folder -> (sha256, bytes), from the text of a manifest; `path` is for error messages.

    Raises:
        FormatError: it is the manifest of neither folder.
    """
    try:
        manifest = _EITHER.validate_json(data)
    except ValidationError:
        raise FormatError(f"{path}: no manifest that this code reads; make the folder again") from None
    if isinstance(manifest, _RawManifest):
        return {f"{shard.name}.tar": (shard.tar_sha256, shard.tar_bytes) for shard in manifest.shards}
    return {shard.path: (shard.sha256, shard.num_bytes) for split in manifest.splits.values() for shard in split.shards}


def stored_tars(folder: Path) -> dict[str, tuple[str, int]]:
    """The same for a folder; empty if it has no manifest. Raises as `parse_stored_tars`."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    return parse_stored_tars(data, path)
