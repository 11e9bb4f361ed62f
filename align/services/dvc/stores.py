"""Where DVC keeps objects by their md5: the cache of a checkout, and its remotes. For take-downs.

DVC has no command that looks into objects or removes chosen ones: `dvc gc` removes everything that is not in use, and
would take what other clones have put into a remote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from align.errors import ServiceError, one_line
from align.services.dvc.repository import dvc_repository

FOLDER = ".dir"


@dataclass(frozen=True)
class ObjectStore:
    """The cache, or a remote that answers.

    Attributes:
        name: for people.
        odb: DVC's own object of it.
        is_here: whether it is the cache.
    """

    name: str
    odb: Any
    is_here: bool

    def all(self) -> set[str]:
        """The md5s of all objects; a list of the files of a folder ends in `.dir`. Raises ServiceError."""
        with self._answering():
            try:
                return set(self.odb.all())
            except FileNotFoundError:  # nothing was ever put there
                return set()

    @contextmanager
    def local(self, md5: str) -> Iterator[Path]:
        """A file with the bytes of an object, which may be a copy that goes afterwards. Raises ServiceError."""
        if self.is_here:
            yield Path(self.odb.oid_to_path(md5))
            return
        with TemporaryDirectory(prefix="align-") as folder:
            path = Path(folder) / md5
            with self._answering():
                self.odb.fs.get_file(self.odb.oid_to_path(md5), str(path))
            yield path

    def files_of(self, md5: str) -> Mapping[str, str]:
        """Path -> md5 of the files in a folder, from the list that is an object here; a damaged list names nothing.
        Raises ServiceError.
        """
        with self.local(md5) as path:
            try:
                return {str(one["relpath"]): str(one["md5"]) for one in json.loads(path.read_bytes())}
            except (ValueError, KeyError, TypeError):
                return {}

    def delete(self, md5: str) -> None:
        """Removes an object, and checks that it is gone. Raises ServiceError."""
        with self._answering():
            self.odb.delete(md5)
            self.odb.fs.fs.invalidate_cache()
            if self.odb.exists(md5):
                raise OSError("still there after it was deleted")

    def deleted(self) -> None:
        """Call it after the last `delete`: the next push must not rely on DVC's own list of a remote's objects."""
        from dvc_data.hashfile.db import get_index

        get_index(self.odb).clear()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 (DVC's, boto's, paramiko's ...: in any case it cannot be used)
            raise ServiceError(f"{self.name}: {one_line(error)}") from None


@contextmanager
def object_stores(root: Path) -> Iterator[tuple[list[ObjectStore], dict[str, str]]]:
    """The cache and every remote of a checkout; and name -> why it cannot be reached, of the remotes that cannot.

    Raises:
        DvcError: DVC cannot read the checkout.
    """
    with dvc_repository(root, "remote") as repo:
        cache = repo.cache.local
        found, unreachable = [ObjectStore(f"DVC cache {cache.path}", cache, True)], dict[str, str]()
        for name, settings in sorted(repo.config["remote"].items()):
            shown = f"DVC remote '{name}' ({settings['url']})"
            try:
                odb = repo.cloud.get_remote_odb(name)
                require_reachable(odb, Path(repo.root_dir))
                found.append(ObjectStore(shown, odb, False))
            except Exception as error:  # noqa: BLE001 (as above)
                unreachable[f"DVC remote '{name}'"] = one_line(error)
        yield found, unreachable


def require_reachable(odb: Any, root: Path) -> None:
    """Checks once that the remote can be reached: raises the file system's error, or OSError for an unmounted disk or a
    bucket that does not exist, in which nothing would be found.
    """
    odb.fs.exists(odb.path)
    if odb.fs.protocol == "s3":
        bucket = odb.path.partition("/")[0]
        try:
            odb.fs.fs.call_s3("head_bucket", Bucket=bucket)
        except PermissionError:  # it is there, and the credentials are for a part of it
            pass
        except FileNotFoundError:
            raise OSError(f"s3://{bucket}: no such bucket") from None
    if odb.fs.protocol == "local":
        folder = Path(odb.path).parents[1]  # of files/md5
        if not folder.parent.exists() and not folder.is_relative_to(root):
            raise OSError(f"{folder.parent}: no such folder; is it mounted?")
