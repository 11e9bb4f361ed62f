"""Single objects of DVC's cache and of its remotes, of any kind.

DVC has no command for them: `dvc gc` removes everything that is not in use, never chosen objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.errors import ServiceError, one_line
from align.services.dvc.repository import dvc_repository


def place(base: Path, md5: str) -> Path:
    """Where an object is in a cache, or in a folder laid out like one."""
    return base / "files" / "md5" / md5[:2] / md5[2:]


@contextmanager
def _remote(root: Path, name: str) -> Iterator[Any]:
    """A remote that can be reached. Raises ServiceError if it is unavailable or unknown."""
    try:
        with dvc_repository(root, "remote") as repo:
            odb = repo.cloud.get_remote_odb(name)
            require_reachable(odb, Path(repo.root_dir))
            yield odb
    except Exception as error:  # noqa: BLE001 (DVC's, boto's, paramiko's ...: in any case the remote cannot be used)
        raise ServiceError(f"DVC remote '{name}': {one_line(error)}") from None


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


def copy(root: Path, remote: str, md5s: Iterable[str], to: Path) -> None:
    """Copies the objects that a remote has into a folder laid out like a cache. Raises ServiceError if the remote is
    unavailable or unknown.
    """
    with _remote(root, remote) as odb:
        for md5 in md5s:
            source = odb.oid_to_path(md5)
            if odb.fs.exists(source):
                target = place(to, md5)
                target.parent.mkdir(parents=True, exist_ok=True)
                beside = target.with_name(f".{target.name}.part")
                odb.fs.get_file(source, str(beside))
                beside.replace(target)


def delete(root: Path, remote: str, md5s: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Deletes the objects that a remote has, and checks that they are gone.

    Returns:
        The md5s of those that were deleted; md5 -> why it could not be, of others.

    Raises:
        ServiceError: the remote is unavailable or unknown.
    """
    from dvc_data.hashfile.db import get_index

    removed, left = [], {}
    with _remote(root, remote) as odb:
        for md5 in md5s:
            path = odb.oid_to_path(md5)
            try:
                if odb.fs.exists(path):
                    odb.fs.remove(path)
                    odb.fs.fs.invalidate_cache()
                    if odb.fs.exists(path):
                        left[md5] = "still there after it was deleted"
                    else:
                        removed.append(md5)
            except Exception as error:  # noqa: BLE001 (each file system has its own errors; the user sees them)
                left[md5] = one_line(error)
        get_index(odb).clear()  # DVC's own list of the remote's objects: the next push must not rely on it
    return removed, left
