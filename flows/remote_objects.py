"""`python -m flows.remote_objects copy|delete REMOTE`: copies or deletes single objects of a DVC remote of any kind.

DVC has no command for that: `dvc gc` removes everything that is not in use, never chosen objects. md5s are read from
stdin, one per line; the last line of stdout is JSON. `copy` puts the objects that exist into a folder laid out like a
cache; `delete` says which objects it deleted, and why it could not delete others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dvc.repo import Repo  # type: ignore[import-untyped]  # DVC ships no types
from dvc_data.hashfile.db import get_index

from flows.log import one_line


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


def copy(odb: Any, md5s: list[str], to: Path) -> dict[str, Any]:
    """Copies the objects that exist."""
    copied = []
    for md5 in md5s:
        source = odb.oid_to_path(md5)
        if odb.fs.exists(source):
            target = to / "files" / "md5" / md5[:2] / md5[2:]
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.part")
            odb.fs.get_file(source, str(beside))
            beside.replace(target)
            copied.append(md5)
    return {"copied": copied}


def delete(odb: Any, md5s: list[str]) -> dict[str, Any]:
    """Deletes the objects that exist, and checks that they are gone."""
    removed, left = [], {}
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
    return {"removed": removed, "left": left}


def main() -> int:
    """Returns 1 with one line on stderr if the remote is unavailable or unknown."""
    parser = argparse.ArgumentParser(prog="flows.remote_objects", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["copy", "delete"])
    parser.add_argument("remote")
    parser.add_argument("--to", type=Path, help="folder for `copy`")
    args = parser.parse_args()
    md5s = sys.stdin.read().split()
    try:
        repo = Repo()
        odb = repo.cloud.get_remote_odb(args.remote)
        require_reachable(odb, Path(repo.root_dir))
        answer = copy(odb, md5s, args.to) if args.what == "copy" else delete(odb, md5s)
    except Exception as error:  # noqa: BLE001 (DVC's, boto's, paramiko's ...: in any case the remote cannot be used)
        print(one_line(error), file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
