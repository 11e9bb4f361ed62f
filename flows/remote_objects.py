"""`python -m flows.remote_objects copy|delete REMOTE`: single objects of a DVC remote, whatever it is.

DVC has no command for that: `dvc gc` removes all that is in no use, and knows no picture. md5s come on stdin, one a
line; the last line of stdout is JSON. `copy` brings those that are there into a folder laid out as a cache; `delete`
says which were there and are gone, and why the others are not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dvc.repo import Repo  # type: ignore[import-untyped]  # DVC ships no types
from dvc_data.hashfile.db import get_index


def require_there(odb: Any, root: Path) -> None:
    """Asks once, not for each object. Raises what the file system raises, or OSError for a disk that is not mounted."""
    odb.fs.exists(odb.path)
    if odb.fs.protocol == "local":
        folder = Path(odb.path).parents[1]  # of files/md5
        if not folder.parent.exists() and not folder.is_relative_to(root):
            raise OSError(f"{folder.parent}: no such folder; is it mounted?")


def copy(odb: Any, md5s: list[str], to: Path) -> dict[str, Any]:
    """Copies the objects that are there."""
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
    """Deletes the objects that are there, and looks again."""
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
        except Exception as error:  # noqa: BLE001 (every file system raises its own; the user is told which)
            left[md5] = " ".join(str(error).split())[:200] or type(error).__name__
    get_index(odb).clear()  # DVC's memory of what the remote has: the next push must not trust it
    return {"removed": removed, "left": left}


def main() -> int:
    """Exit code 1 with one line on stderr where the remote is away or unknown."""
    parser = argparse.ArgumentParser(prog="flows.remote_objects", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["copy", "delete"])
    parser.add_argument("remote")
    parser.add_argument("--to", type=Path, help="folder for `copy`")
    args = parser.parse_args()
    md5s = sys.stdin.read().split()
    try:
        repo = Repo()
        odb = repo.cloud.get_remote_odb(args.remote)
        require_there(odb, Path(repo.root_dir))
        answer = copy(odb, md5s, args.to) if args.what == "copy" else delete(odb, md5s)
    except Exception as error:  # noqa: BLE001 (DVC's, boto's, paramiko's: whatever it is, the remote is of no use)
        print(" ".join(str(error).split())[:300] or type(error).__name__, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
