"""`store.work`: finished results of a stage's steps in S3, for machines of a cluster that share no disk.

    PREFIX/STAGE/KEY/objects/SHA256     a file, under the sha256 of its bytes
    PREFIX/STAGE/KEY/done/RESULT.json   the files of a result, written last: with it the result is complete

KEY is that of the work folder, so runs with other parameters, data or code do not meet. No object ever changes. If two
machines make the same result, the first that writes its `done` object counts.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from align.config.infrastructure import StoreConfig
from align.durable.files import sha256_file
from align.errors import CorruptError, DataError, ServiceError
from align.formats.json_file import StoredModel, parse
from align.services.files.files import StoreFiles
from align.services.s3 import client as store_client
from align.services.s3.locations import split_uri
from align.services.s3.store import read_checked

#: The `done` object of the largest result has some hundred bytes for each of its files.
_MAX_DONE_BYTES = 16 << 20


class _File(StoredModel):
    name: str
    sha256: str
    num_bytes: int


class _Done(StoredModel):
    """The files of a result, in order of their names."""

    schema_version: Literal[1]
    files: tuple[_File, ...]


@dataclass(frozen=True)
class StoreWork:
    """Implements `align.interfaces.store.SharedResults`. Can be pickled.

    Attributes:
        config: how to reach the server.
        location: s3://bucket/prefix, of one stage under one key.
    """

    config: StoreConfig
    location: str

    def finished(self) -> frozenset[str]:
        """See `SharedResults`."""
        bucket, prefix = split_uri(f"{self.location}/done/")
        names = store_client.list_objects(self.config, bucket, prefix)
        return frozenset(name.removeprefix(prefix).removesuffix(".json") for name in names)

    def has(self, result: str) -> bool:
        """See `SharedResults`."""
        return self._done(result) is not None

    def publish(self, result: str, folder: Path) -> bool:
        """See `SharedResults`."""
        stored = self._done(result)
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        files = tuple(
            _File(name=name, sha256=sha256_file(path), num_bytes=path.stat().st_size)
            for name, path in sorted(paths.items())
        )
        done = _Done(schema_version=1, files=files)
        if stored is None:
            for file in files:
                self._upload(paths[file.name], file)
            if store_client.write_new(self.config, self._list_of(result), done.model_dump_json().encode()):
                return True
            stored = self._done(result)  # another was first, or the answer to our request was lost
            if stored is None:
                raise ServiceError(f"{self._list_of(result)}: the server refuses it; run again")
        return stored == done

    def fetch(self, result: str, folder: Path) -> bool:
        """See `SharedResults`."""
        done, where = self._done(result), self._list_of(result)
        for file in done.files if done else ():
            path, uri = folder / file.name, self._uri(file)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                remedy = f"remove it and {where}, and run again"
                is_stored = read_checked(self.config, uri, path, file.sha256, file.num_bytes, remedy)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise _names_another(where, file) from None
            if not is_stored:
                raise DataError(f"{uri}: no such object; was it removed? Remove {where} and run again")
        return done is not None

    def open(self, result: str, file: str) -> BinaryIO:
        """See `SharedResults`."""
        done = self._done(result)
        for one in done.files if done else ():
            if one.name == file:
                return StoreFiles(self.config).open(self._uri(one))
        raise DataError(f"{self._list_of(result)}: missing, or has no file {file!r}; run the stage again")

    def _list_of(self, result: str) -> str:
        return f"{self.location}/done/{result}.json"

    def _done(self, result: str) -> _Done | None:
        where = self._list_of(result)
        found = store_client.read_small(self.config, where, _MAX_DONE_BYTES)
        if found is None:
            return None
        done = parse(_Done, found, where, "delete the object and run again")
        seen = set[str]()
        for file in done.files:
            if not _is_inside(file.name) or file.name in seen or not re.fullmatch("[0-9a-f]{64}", file.sha256):
                raise _names_another(where, file)
            seen.add(file.name)
        return done

    def _uri(self, file: _File) -> str:
        return f"{self.location}/objects/{file.sha256}"

    def _upload(self, path: Path, file: _File) -> None:
        uri = self._uri(file)
        if not store_client.upload(self.config, path, uri):
            stored = store_client.stat(self.config, uri)
            if stored is None or stored.num_bytes != file.num_bytes:
                raise CorruptError(f"{uri}: not the {file.num_bytes} bytes of {path}; remove the object and run again")


def _is_inside(name: str) -> bool:
    """Whether a folder may have a file of this name."""
    path = PurePosixPath(name)
    return bool(path.name) and str(path) == name and "\0" not in name and not {"/", ".."} & {*path.parts}


def _names_another(where: str, file: _File) -> CorruptError:
    return CorruptError(f"{where}: names the file {file.name!r}, which no result has; delete the object, run again")


def open_work(config: StoreConfig, runner: str, stage: str, key: str) -> StoreWork | None:
    """Where the machines of a cluster share this stage's work; None where they share a disk, or there is one machine.

    Raises:
        ServiceError: the server is unavailable, or ignores the conditions of writes.
    """
    if config.work is None or runner == "local":
        return None
    prefix = config.work.rstrip("/")
    require_conditions(config, prefix)
    return StoreWork(config, f"{prefix}/{stage}/{key}")


def require_conditions(config: StoreConfig, location: str) -> None:
    """Checks with an object of its own that a server writes a new object once. Raises ServiceError if it does not."""
    uri = f"{location}/probe-{secrets.token_hex(16)}"
    try:
        first = store_client.write_new(config, uri, b"1")
        second = store_client.write_new(config, uri, b"2")
        found = store_client.read_small(config, uri, _MAX_DONE_BYTES)
    finally:
        store_client.remove(config, uri)
    if (not first and found != b"1") or second:
        raise ServiceError(
            f"{location}: this server ignores the condition of a write (If-None-Match), so two machines could mix "
            "their files; set store.work to another server, or share a disk instead"
        )
