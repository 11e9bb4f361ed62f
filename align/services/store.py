"""Where bytes beyond this machine lie: files for ingest to read, and a content-addressed store for tars.

`store.objects` (s3://bucket/prefix, or a folder) chooses how a dataset is kept. Without it the tars lie in data/raw and
data/shards, and DVC's cache and remote hold them. With it a stage hands its tars over (`keep_tar`), under their sha256,
and its folder keeps tables and manifest.json, which name them: that is what DVC then versions. The manifest is the same
bytes both ways. Who reads a folder takes `materialised(folder, config)` in its place, or `fetcher(config)` to fetch tar
by tar, or `tar_reader(config)` to read single samples by range, and need not know.

An object is written once, by a conditional write, so that two writers never mix, and never changed. It is checked
against its name, the sha256, when it is first read on a machine; the checked copy in `store.cache` serves from then on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from align.config.store import StoreConfig
from align.errors import ConfigError, CorruptError, DataError
from align.files import fsync
from align.protocols.store import FetchTar
from align.formats.shards import MANIFEST
from align.formats.stored_tars import parse_stored_tars
from align.services.store_client import download, is_s3, read_range, remove, split_uri, stat, upload
from align.services.store_files import StoreFiles

#: A copy that does not match its name is read once more: the way may have damaged it.
_READS = 2


def open_files(config: StoreConfig) -> StoreFiles:
    """Files and objects for ingest to read, see `align.protocols.store.Files`; no server is spoken to yet."""
    return StoreFiles(config)


@dataclass(frozen=True)
class Objects:
    """Tars by their sha256, at `config.objects`. Can be pickled; threads and processes may share it.

    Raises:
        ConfigError: `store.objects` is not set, or is no s3://bucket/prefix.
    """

    config: StoreConfig

    def __post_init__(self) -> None:
        if self.config.objects is None:
            raise ConfigError("store.objects is not set: s3://bucket/prefix or a folder")
        if is_s3(self.config.objects):
            split_uri(self.config.objects)

    def uri(self, sha256: str) -> str:
        """Where an object lies, or would: s3://... or a path."""
        return f"{str(self.config.objects).rstrip('/')}/{sha256[:2]}/{sha256}.tar"

    def exists(self, sha256: str) -> bool:
        """Whether there is such an object. Raises as `put`."""
        return self._num_bytes(sha256) is not None

    def put(self, path: Path, sha256: str) -> None:
        """Stores a file under its sha256; one that is there already is compared in size and left.

        Raises:
            CorruptError: there is one of another size.
            DataError: no such bucket, or the credentials are refused.
            ServiceError: the server is away or refuses; the file is still here, and no half object is there.
        """
        uri = self.uri(sha256)
        created = upload(self.config, path, uri) if is_s3(uri) else _copy_new(path, Path(uri))
        if created:
            return
        there, here = self._num_bytes(sha256), path.stat().st_size
        if there != here:
            raise CorruptError(f"{uri}: {there} bytes, but {path} has {here}; remove the object and run again")

    def get(self, sha256: str, num_bytes: int) -> Path:
        """The checked copy in `store.cache`; fetched unless it is there. Do not write into it.

        Raises:
            CorruptError: the object does not match its name, read twice.
            DataError: there is no such object, or the credentials are refused.
            ServiceError: the server is away or refuses.
        """
        copy = self.copy(sha256, num_bytes)
        if copy is not None:
            return copy
        cached = self._cached(sha256)
        uri, found = self.uri(sha256), ""
        for _ in range(_READS):
            with _beside(cached) as (path, file):
                digest = self._read_into(uri, file)
                if digest is None:
                    raise DataError(f"{uri}: no such object; was it removed, or is store.objects another one by now?")
                file.flush()
                os.fsync(file.fileno())
                found = f"{file.tell():,} bytes with sha256 {digest}"
                if digest == sha256 and file.tell() == num_bytes:
                    os.replace(path, cached)
                    fsync(cached.parent)
                    return cached
        raise CorruptError(
            f"{uri}: {found}, but it should have {num_bytes:,} bytes with the sha256 of its name; it is damaged: "
            "remove the object and make it again"
        )

    def copy(self, sha256: str, num_bytes: int) -> Path | None:
        """The checked copy in `store.cache`, if it is there."""
        cached = self._cached(sha256)
        return cached if cached.is_file() and cached.stat().st_size == num_bytes else None

    def delete(self, sha256: str) -> None:
        """Removes an object and this machine's copy, for take-downs; one that is gone is no error. Raises as `put`."""
        uri = self.uri(sha256)
        if is_s3(uri):
            remove(self.config, uri)
        else:
            Path(uri).unlink(missing_ok=True)
        self._cached(sha256).unlink(missing_ok=True)

    def _cached(self, sha256: str) -> Path:
        return self.config.cache / "objects" / sha256[:2] / f"{sha256}.tar"

    def _num_bytes(self, sha256: str) -> int | None:
        uri = self.uri(sha256)
        if is_s3(uri):
            found = stat(self.config, uri)
            return found.num_bytes if found else None
        return Path(uri).stat().st_size if Path(uri).is_file() else None

    def _read_into(self, uri: str, file: BinaryIO) -> str | None:
        if is_s3(uri):
            return download(self.config, uri, file)
        if not Path(uri).is_file():
            return None
        with Path(uri).open("rb") as source:
            shutil.copyfileobj(source, file)
        file.flush()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a BinaryIO that was opened here


def fetcher(config: StoreConfig) -> FetchTar | None:
    """(sha256, bytes) -> path of a checked tar, for who reads tar by tar; None without `store.objects`; picklable."""
    return Objects(config).get if config.objects else None


@dataclass(frozen=True)
class TarReader:
    """`align.protocols.store.Tars`: ranges of the objects, or of their checked copies where this machine has them.

    A range cannot be compared with the tar's sha256. It was when the object was put and when the gate read it; what is
    damaged since shows when a sample does not decode.
    """

    objects: Objects

    @property
    def num_connections(self) -> int:
        """How many threads may read at a time."""
        return self.objects.config.num_connections

    def uri(self, sha256: str, num_bytes: int) -> str:
        """The copy's path, or where the object lies (a path, too, where `store.objects` is a folder)."""
        return str(self.objects.copy(sha256, num_bytes) or self.objects.uri(sha256))

    def read(self, uri: str, offset: int, size: int) -> bytes:
        """Bytes of an s3:// URI, fewer where it ends. It asks twice; the caller is more patient.

        Raises:
            DataError: there is no such object, or the credentials are refused.
            ServiceError: the server is away or refuses.
        """
        return read_range(self.objects.config.model_copy(update={"num_retries": 1}), uri, offset, size)


def tar_reader(config: StoreConfig) -> TarReader | None:
    """For training, which reads samples and not tars; None without `store.objects`; picklable."""
    return TarReader(Objects(config)) if config.objects else None


def keep_tar(path: Path, sha256: str, config: StoreConfig) -> None:
    """Hands a finished tar over to `store.objects`, if that is set, and removes it here. To be called before what marks
    the shard as done; again for one that was handed over before a kill it only looks whether it is there.

    Raises:
        DataError: it is neither here nor there.
        CorruptError, ServiceError: as `Objects.put`; the tar is still here then.
    """
    if config.objects is None:
        return
    objects = Objects(config)
    if path.is_file():
        objects.put(path, sha256)
        path.unlink()
    elif not objects.exists(sha256):
        raise DataError(f"{path}: neither here nor at {objects.uri(sha256)}; make it again")


def materialised(folder: Path, config: StoreConfig) -> Path:
    """A folder in which every tar that `manifest.json` names can be opened: data/raw or data/shards as stages read it.

    In the `main` of a stage: `shards = materialised(paths.shards, params.section(StoreConfig))`. The folder itself
    where its tars are in it, or where there is no manifest (a folder that img2dataset made); else a folder of links in
    `store.cache`, to the checked copies of the tars (fetched where they are not there yet) and to the other files.

    Raises:
        DataError: tars are missing and `store.objects` is not set, or an object is missing.
        CorruptError: an object does not match its name.
        ServiceError: the server is away or refuses.
    """
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return folder
    tars = parse_stored_tars(manifest, folder / MANIFEST)
    missing = [name for name in tars if not (folder / name).is_file()]
    if not missing:
        return folder
    if config.objects is None:
        raise DataError(
            f"{folder / missing[0]}: missing, one of {len(missing):,} such tars of its {MANIFEST}; run `dvc pull`, "
            "or set store.objects to where they were put"
        )
    objects = Objects(config)
    name = hashlib.sha256(str(folder.resolve()).encode() + manifest).hexdigest()
    links = config.cache.resolve() / "folders" / name
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        _link(links / file.relative_to(folder), file.resolve())
    for tar in missing:
        _link(links / tar, objects.get(*tars[tar]).resolve())
    return links


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(f".{link.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, link)


def _copy_new(path: Path, target: Path) -> bool:
    """Copies a file to a name that is free, atomically; False where the name was taken."""
    with _beside(target) as (beside, file):
        with path.open("rb") as source:
            shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(beside, target)
        except FileExistsError:
            return False
    fsync(target.parent)
    return True


@contextmanager
def _beside(target: Path) -> Iterator[tuple[Path, Any]]:
    """A new file beside `target`, of this thread alone; removed unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with path.open("w+b") as file:
            yield path, file
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
