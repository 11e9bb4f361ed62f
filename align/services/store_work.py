"""`store.work`: finished pieces of a stage's work in S3, for machines of a cluster that share no disk.

    PREFIX/STAGE/KEY/objects/SHA256    a file of a piece, under the sha256 of its bytes
    PREFIX/STAGE/KEY/done/PIECE.json   the piece's files, written last: with it the piece is complete

KEY is that of the work folder, so runs with other parameters, data or code do not meet. No object ever changes. If two
machines make the same piece, the first that writes its `done` file counts, and the other one takes over its files. The
files of a piece come to a work folder together, the last one last, so a folder never has a mixture that counts as
complete.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from align.config.infrastructure import StoreConfig
from align.durable.files import fsync, is_temporary, sha256_file, temporary_name
from align.durable.work import CLAIMS
from align.errors import CorruptError, DataError, ServiceError
from align.formats.json_file import StoredModel, parse
from align.services.s3 import client as store_client
from align.services.s3.locations import split_uri
from align.services.s3.store import read_checked

#: The `done` file of the largest piece has some hundred bytes for each of its files.
_MAX_DONE_BYTES = 16 << 20


class _File(StoredModel):
    name: str
    sha256: str
    num_bytes: int


class _Done(StoredModel):
    """The files of a piece, in the order in which they get their names."""

    schema_version: Literal[1]
    files: tuple[_File, ...]


@dataclass(frozen=True)
class StoreWork:
    """Implements `align.interfaces.store.SharedPieces`. Can be pickled.

    Attributes:
        config: how to reach the server.
        location: s3://bucket/prefix, of one stage under one key.
    """

    config: StoreConfig
    location: str

    def finished(self) -> frozenset[str]:
        """See `SharedPieces`."""
        bucket, prefix = split_uri(f"{self.location}/done/")
        names = store_client.list_objects(self.config, bucket, prefix)
        return frozenset(name.removeprefix(prefix).removesuffix(".json") for name in names)

    def has(self, piece: str) -> bool:
        """See `SharedPieces`."""
        return self._done(piece) is not None

    def publish(self, piece: str, folder: Path, files: Sequence[str]) -> None:
        """See `SharedPieces`."""
        stored = self._done(piece)
        listed = [
            _File(name=name, sha256=sha256_file(folder / name), num_bytes=(folder / name).stat().st_size)
            for name in files
        ]
        done = _Done(schema_version=1, files=tuple(listed))
        if stored is None:
            for file in listed:
                self._upload(folder / file.name, file)
            if store_client.write_new(self.config, self._list_of(piece), done.model_dump_json().encode()):
                return
            stored = self._done(piece)  # another was first, or the answer to our request was lost
            if stored is None:
                raise ServiceError(f"{self._list_of(piece)}: the server refuses it; run again")
        if stored != done:
            self._download(piece, stored, folder, files)

    def fetch(self, piece: str, folder: Path, last: str) -> bool:
        """See `SharedPieces`."""
        done = self._done(piece)
        if done is not None:
            self._download(piece, done, folder, [last])
        return done is not None

    def read(self, piece: str, file: str, offset: int, size: int) -> bytes:
        """See `SharedPieces`."""
        uri = _places(self, piece).get(file)
        if uri is None:
            raise DataError(f"{self._list_of(piece)}: has no file {file!r}; run the stage again")
        return store_client.read_range(self.config, uri, offset, size)

    def remove(self, piece: str) -> None:
        """See `SharedPieces`."""
        done = self._done(piece)
        store_client.remove(self.config, self._list_of(piece))
        for file in done.files if done else ():
            store_client.remove(self.config, self._uri(file))

    def _list_of(self, piece: str) -> str:
        return f"{self.location}/done/{piece}.json"

    def _done(self, piece: str) -> _Done | None:
        where = self._list_of(piece)
        found = store_client.read_small(self.config, where, _MAX_DONE_BYTES)
        if found is None:
            return None
        done = parse(_Done, found, where, "delete the object and run again")
        seen: set[str] = set()
        for file in done.files:
            if not _is_of_a_piece(file.name) or file.name in seen or not re.fullmatch("[0-9a-f]{64}", file.sha256):
                raise self._names_another(where, file)
            seen.add(file.name)
        return done

    @staticmethod
    def _names_another(where: str, file: _File) -> CorruptError:
        return CorruptError(f"{where}: names the file {file.name!r}, which no piece has; delete the object, run again")

    def _uri(self, file: _File) -> str:
        return f"{self.location}/objects/{file.sha256}"

    def _upload(self, path: Path, file: _File) -> None:
        uri = self._uri(file)
        if not store_client.upload(self.config, path, uri):
            stored = store_client.stat(self.config, uri)
            if stored is None or stored.num_bytes != file.num_bytes:
                raise CorruptError(f"{uri}: not the {file.num_bytes} bytes of {path}; remove the object and run again")

    def _download(self, piece: str, done: _Done, folder: Path, here: Sequence[str]) -> None:
        """Puts the files of a piece in the place of those that may be `here`; the last one completes it."""
        where = self._list_of(piece)
        names = [file.name for file in done.files]
        if names[-1:] != [here[-1]]:
            raise CorruptError(f"{where}: does not end with the file {here[-1]!r}; delete the object and run again")
        with ExitStack() as temporaries:
            moves: list[tuple[Path, Path]] = []
            for file in done.files:
                path, uri = folder / file.name, self._uri(file)
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError):
                    raise self._names_another(where, file) from None
                if path.is_dir():
                    raise self._names_another(where, file)
                beside = temporary_name(path)
                temporaries.callback(beside.unlink, missing_ok=True)
                remedy = f"remove it and {where}, and run again"
                if not read_checked(self.config, uri, beside, file.sha256, file.num_bytes, remedy):
                    raise DataError(f"{uri}: no such object; was it removed? Remove {where} and run again")
                moves.append((beside, path))
            # from here on a kill leaves a piece without its last file: it is incomplete, and brought or made again
            *others, (last_beside, last) = moves
            last.unlink(missing_ok=True)
            fsync(last.parent)
            for name in set(here) - set(names):
                (folder / name).unlink(missing_ok=True)
            for beside, path in others:
                os.replace(beside, path)
            for parent in {path.parent for _, path in others}:
                fsync(parent)
            os.replace(last_beside, last)
            fsync(last.parent)


def _is_of_a_piece(name: str) -> bool:
    """Whether a piece may have a file of this name: in the work folder, and none of those that run the folder."""
    path = PurePosixPath(name)
    if not path.name or str(path) != name or "\0" in name or path.is_absolute() or ".." in path.parts:
        return False
    if path.parts[0] == CLAIMS or is_temporary(Path(name)):
        return False
    return len(path.parts) > 1 or not name.startswith(".")  # the folder's key and mark are hidden


@lru_cache(maxsize=20_000)
def _places(work: StoreWork, piece: str) -> dict[str, str]:
    """Where the files of a complete piece are. It never changes."""
    done = work._done(piece)
    if done is None:
        raise DataError(f"{work._list_of(piece)}: missing; run the stage again")
    return {file.name: work._uri(file) for file in done.files}


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
