"""Where backups lie: a folder, or s3://bucket/prefix. Files under their sha256, and a manifest for each backup.

project.json             whose backups these are
files/ab/abcdef...       files; equal ones are there once, so that a later backup copies only what is new
backups/TIME-SHA256.json the manifest of one backup, written last: without it there is no backup. Its name has the
                         sha256 of its bytes
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.store import StoreConfig
from align.errors import CorruptError, DataError
from align.files import sweep, temporary_name, to_json, write_bytes
from align.services.locations import is_s3, split_uri
from align.services.store import Objects, read_checked
from align.services.store_client import download, list_objects, upload

_PROJECT, _BACKUPS = "project.json", "backups"
SCHEMA_VERSION = 1


class _Files(Objects):
    """Files of any kind by their sha256."""

    def uri(self, sha256: str) -> str:
        """Without the ending of a tar."""
        return super().uri(sha256).removesuffix(".tar")


@dataclass(frozen=True)
class Place:
    """A place for backups of one project.

    Attributes:
        location: a folder or s3://bucket/prefix.
        store: section `store`, for how to reach a server.

    Raises:
        DataError: the bucket does not exist, or the credentials are refused; all methods.
        ServiceError: the server is unavailable; all methods.
    """

    location: str
    store: StoreConfig

    @property
    def _files(self) -> _Files:
        return _Files(self.store.model_copy(update={"objects": f"{self.location.rstrip('/')}/files"}))

    def project(self) -> str | None:
        """The id of the project whose backups these are; None if the place is empty.

        Raises:
            DataError: there is something else.
        """
        data = self._read(_PROJECT)
        if data is None:
            if self._names(""):
                raise DataError(f"{self.location}: is not empty and holds no backups of align; choose another place")
            return None
        try:
            return str(json.loads(data)["project"])
        except (ValueError, KeyError, TypeError):
            raise CorruptError(f"{self.location}/{_PROJECT}: is damaged; choose another place for backups") from None

    def claim(self, project: str) -> None:
        """Makes the place the project's. Raises DataError if it is another one's, or holds something else."""
        if not is_s3(self.location):
            for folder in Path(self.location).glob("files/*"):
                sweep(folder)
        owner = self.project()
        if owner is None:
            self._write(_PROJECT, to_json({"project": project, "schema_version": SCHEMA_VERSION}).encode())
        elif owner != project:
            raise DataError(f"{self.location}: holds the backups of another project; choose another place")

    def put(self, path: Path, sha256: str) -> None:
        """Stores a file, unless it is there."""
        self._files.put(path, sha256)

    def has(self, sha256: str) -> bool:
        """Whether a file is there."""
        return self._files.exists(sha256)

    def get(self, sha256: str, num_bytes: int, path: Path) -> None:
        """Copies a file back, whole or not at all.

        Raises:
            CorruptError: it is missing or damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        part, uri = temporary_name(path), self._files.uri(sha256)
        try:
            if not read_checked(self.store, uri, part, sha256, num_bytes, "restore an earlier backup"):
                raise CorruptError(f"{uri}: missing, though a backup names it; restore an earlier backup")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def finish(self, time: str, manifest: dict[str, Any]) -> str:
        """Writes the manifest, which makes the files a backup. Returns its name."""
        data = to_json(manifest).encode()
        name = f"{time}-{hashlib.sha256(data).hexdigest()}.json"
        self._write(f"{_BACKUPS}/{name}", data)
        return name

    def backups(self) -> list[str]:
        """Names of the manifests, oldest first."""
        return sorted(name for name in self._names(f"{_BACKUPS}/") if name.endswith(".json") and name[0] != ".")

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of that name.

        Raises:
            CorruptError: it is missing or damaged.
        """
        data = self._read(f"{_BACKUPS}/{name}")
        if data is None or hashlib.sha256(data).hexdigest() != name.rpartition("-")[2].removesuffix(".json"):
            raise CorruptError(f"{self.location}/{_BACKUPS}/{name}: missing or damaged; name another one with --backup")
        found: dict[str, Any] = json.loads(data)
        if found.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"{self.location}/{_BACKUPS}/{name}: written by another version of align")
        return found

    def _uri(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"

    def _names(self, folder: str) -> list[str]:
        """Names in a folder of the place."""
        if is_s3(self.location):
            bucket, key = split_uri(self._uri(folder))
            found = {name.removeprefix(key).partition("/")[0] for name in list_objects(self.store, bucket, key)}
            return sorted(found - {""})
        path = Path(self.location, folder)
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: is a file, not a folder; choose another place")
        return sorted(each.name for each in path.iterdir()) if path.is_dir() else []

    def _read(self, name: str) -> bytes | None:
        if not is_s3(self.location):
            path = Path(self._uri(name))
            return path.read_bytes() if path.is_file() else None
        with tempfile.TemporaryFile() as file:
            if download(self.store, self._uri(name), file) is None:
                return None
            file.seek(0)
            return file.read()

    def _write(self, name: str, data: bytes) -> None:
        if not is_s3(self.location):
            write_bytes(Path(self._uri(name)), data)
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            upload(self.store, Path(file.name), self._uri(name))
