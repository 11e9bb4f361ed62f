"""Bytes outside this machine: a content-addressed store for tars, and copies of checkpoints (`store.checkpoints`).

`store.objects` (s3://bucket/prefix, or a folder) chooses how a dataset is kept. Without it, the tars are in data/raw
and data/shards; DVC's cache and remote hold them. With it, a stage uploads its tars under their sha256 (`keep_tar`)
and its folder keeps tables and manifest.json, which name the tars: DVC then versions only these. The bytes of the
manifest are the same both ways. A reader uses `fetcher(config)` to fetch tar by tar, or `tar_reader(config)` to
read single samples by range.

An object is written once, by a conditional write, so that two writers never mix, and never changed. It is checked
against its name, the sha256, when it is first read on a machine; later reads use the checked copy in `store.cache`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.infrastructure import StoreConfig
from align.durable.files import fsync, replaced, temporary_name
from align.errors import ConfigError, CorruptError, DataError
from align.interfaces.store import FetchTar
from align.services.s3.client import download, list_objects, read_range, remove, stat, upload
from align.services.s3.locations import Stat, is_s3, split_uri

#: A copy that does not match its name is read once more: the transfer may have damaged it.
_READS = 2


@dataclass(frozen=True)
class Objects:
    """Tars by their sha256, at `config.objects`. Can be pickled; threads and processes may share it.

    Raises:
        ConfigError: `store.objects` is not set, or not of the form s3://bucket/prefix.
    """

    config: StoreConfig

    def __post_init__(self) -> None:
        if self.config.objects is None:
            raise ConfigError("store.objects is not set: s3://bucket/prefix or a folder")
        if is_s3(self.config.objects):
            split_uri(self.config.objects)

    def uri(self, sha256: str) -> str:
        """The location of an object, which need not exist: s3://... or a path."""
        return f"{str(self.config.objects).rstrip('/')}/{sha256[:2]}/{sha256}.tar"

    def exists(self, sha256: str) -> bool:
        """Whether the object exists. Raises as `put`."""
        return self._num_bytes(sha256) is not None

    def put(self, path: Path, sha256: str) -> None:
        """Stores a file under its sha256; compares only the size of an existing object.

        Raises:
            CorruptError: the object exists with another size.
            DataError: the bucket does not exist, or the credentials are refused.
            ServiceError: the server is unavailable or refuses; the file is still here, and no partial object exists.
        """
        uri = self.uri(sha256)
        created = upload(self.config, path, uri) if is_s3(uri) else _copy_new(path, Path(uri))
        if created:
            return
        stored, expected = self._num_bytes(sha256), path.stat().st_size
        if stored != expected:
            raise CorruptError(f"{uri}: {stored} bytes, but {path} has {expected}; remove the object and run again")

    def get(self, sha256: str, num_bytes: int) -> Path:
        """The checked copy in `store.cache`; fetched if it does not exist yet. Do not write to it.

        Raises:
            CorruptError: the object has another size, or does not match its name in two reads.
            DataError: the object does not exist, or the credentials are refused.
            ServiceError: the server is unavailable or refuses.
        """
        copy = self.copy(sha256, num_bytes)
        if copy is not None:
            return copy
        cached, uri = self._cached(sha256), self.uri(sha256)
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replaced(cached) as beside:
            if not read_checked(self.config, uri, beside, sha256, num_bytes, "remove the object and make it again"):
                raise DataError(f"{uri}: no such object; was it removed, or has store.objects changed?")
        return cached

    def copy(self, sha256: str, num_bytes: int) -> Path | None:
        """The checked copy in `store.cache`, if it exists."""
        cached = self._cached(sha256)
        return cached if cached.is_file() and cached.stat().st_size == num_bytes else None

    def delete(self, sha256: str) -> None:
        """Removes an object and this machine's copy, for take-downs; a missing one is not an error. Raises as `put`."""
        uri = self.uri(sha256)
        if is_s3(uri):
            remove(self.config, uri)
        else:
            Path(uri).unlink(missing_ok=True)
        self._cached(sha256).unlink(missing_ok=True)

    def _cached(self, sha256: str) -> Path:
        return self.config.cache / "objects" / sha256[:2] / f"{sha256}.tar"

    def _num_bytes(self, sha256: str) -> int | None:
        status = _stat(self.config, self.uri(sha256))
        return status.num_bytes if status else None


def read_checked(config: StoreConfig, uri: str, path: Path, sha256: str, num_bytes: int, remedy: str) -> bool:
    """Copies an object to a file, which is on disk when this returns; False if there is no such object.

    An object of another size is not read.

    Args:
        config: section `store`.
        uri: of the object: s3://... or a path.
        path: a new file; after an error, it may have some of the bytes.
        sha256: of the object's bytes.
        num_bytes: its size.
        remedy: what to do about a damaged object.

    Raises:
        CorruptError: the object has another size, or other bytes in two reads.
        DataError: it was replaced meanwhile, or the credentials are refused.
        ServiceError: the server is unavailable or refuses.
    """
    content = ""
    for _ in range(_READS):
        status = _stat(config, uri)
        if status is None:
            return False
        content = f"{status.num_bytes:,} bytes"
        if status.num_bytes != num_bytes:
            break
        with path.open("w+b") as file:
            digest = _read_into(config, uri, status, file)
            file.flush()
            os.fsync(file.fileno())
            if digest == sha256 and file.tell() == num_bytes:
                return True
            content = f"{file.tell():,} bytes with sha256 {digest}"
    raise CorruptError(
        f"{uri}: {content}, but it should have {num_bytes:,} bytes with the sha256 of its name; it is damaged: {remedy}"
    )


def _stat(config: StoreConfig, uri: str) -> Stat | None:
    if is_s3(uri):
        return stat(config, uri)
    return Stat(Path(uri).stat().st_size, "") if Path(uri).is_file() else None


def _read_into(config: StoreConfig, uri: str, status: Stat, file: Any) -> str | None:
    if is_s3(uri):
        return download(config, uri, file, status)
    with Path(uri).open("rb") as source:
        shutil.copyfileobj(source, file)
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def fetcher(config: StoreConfig) -> FetchTar | None:
    """(sha256, bytes) -> path of a checked tar, to read tar by tar; None without `store.objects`. Can be pickled."""
    return Objects(config).get if config.objects else None


@dataclass(frozen=True)
class TarReader:
    """`align.interfaces.store.Tars`: ranges of the objects, or of this machine's checked copies.

    A range cannot be compared with the tar's sha256. The whole tar was compared when it was stored and when the gate
    read it; if it was damaged since, a sample does not decode.
    """

    config: StoreConfig

    @property
    def num_connections(self) -> int:
        """Number of threads that may read at a time."""
        return self.config.num_connections

    def uri(self, sha256: str, num_bytes: int) -> str:
        """The copy's path, or the object's location (also a path if `store.objects` is a folder)."""
        objects = Objects(self.config)
        return str(objects.copy(sha256, num_bytes) or objects.uri(sha256))

    def read(self, uri: str, offset: int, size: int) -> bytes:
        """See `Tars`. Retries once; the caller retries for longer."""
        return read_range(self.config.model_copy(update={"num_retries": 1}), uri, offset, size)


def tar_reader(config: StoreConfig, *, given: bool = False) -> TarReader | None:
    """For training, which reads samples, not tars; None without `store.objects`, unless tars are `given` by their
    addresses. Can be pickled.
    """
    return TarReader(config) if config.objects or given else None


def keep_tar(path: Path, sha256: str, config: StoreConfig) -> None:
    """Uploads a finished tar to `store.objects`, if that is set, and removes it here.

    Call it before the shard is marked as done. If a killed run has uploaded the tar, a second call only checks that the
    object exists. Raises DataError if the tar is neither here nor in the store; CorruptError, ServiceError as
    `Objects.put`; then the tar is still here.
    """
    if config.objects is None:
        return
    objects = Objects(config)
    if path.is_file():
        objects.put(path, sha256)
        path.unlink()
    elif not objects.exists(sha256):
        raise DataError(f"{path}: neither here nor at {objects.uri(sha256)}; make it again")


def _copy_new(path: Path, target: Path) -> bool:
    """Copies a file to a name that is free, atomically; False if the name is taken."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary_name(target)
    try:
        shutil.copyfile(path, beside)
        fsync(beside)
        os.link(beside, target)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    fsync(target.parent)
    return True


@dataclass(frozen=True)
class CheckpointMirror:
    """Implements `align.interfaces.store.Mirror`. Picklable: each rank has its own.

    Attributes:
        config: how to reach the server.
        location: s3://bucket/prefix.
    """

    config: StoreConfig
    location: str

    def put(self, path: Path, name: str) -> None:
        """See `Mirror`. A file that the store has stays: a step's checkpoint is the same each time."""
        upload(self.config, path, self._uri(name))

    def names(self, run: str) -> list[str]:
        """The names of a run's files, in order."""
        bucket, key = split_uri(self._uri(f"{run}/"))
        names = (name.removeprefix(key) for name in list_objects(self.config, bucket, key))
        return [name for name in names if "/" not in name]  # it becomes the name of a file

    def get(self, name: str, path: Path) -> None:
        """Downloads a file, whole or not at all."""
        with replaced(path) as part, part.open("wb") as file:
            if download(self.config, self._uri(name), file) is None:
                raise DataError(f"{self._uri(name)}: has been deleted meanwhile; run again")

    def delete(self, name: str) -> None:
        """Deletes a file."""
        remove(self.config, self._uri(name))

    def _uri(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"


def checkpoint_mirror(config: StoreConfig) -> CheckpointMirror | None:
    """The mirror at `store.checkpoints`, or None if that is null."""
    return None if config.checkpoints is None else CheckpointMirror(config, config.checkpoints)
