"""How a stage works shard by shard: a folder in which a killed run resumes.

A stage keeps what is finished in a work folder next to its output (`.NAME.part`); a rename commits each result
(`align.durable.steps`). The folder carries a key, a digest of everything that decides its bytes: a run with the same
key resumes there, a run with another key starts again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.display.console import say
from align.durable.files import (
    MARK,
    clear_leftovers,
    fsync,
    fsync_all,
    is_temporary,
    make_parent,
    mark,
    marked,
    naming,
    require_replaceable,
    swap,
    temporary_name,
    write_text,
)
from align.durable.locks import tried
from align.errors import DataError, LockedError

_KEY_FILE = ".work.json"
#: The folder in every work folder for what its processes need while they work. It is gone when the output is there.
SCRATCH = ".scratch"
#: In it, results that are not complete; each has a name of its own (`files.temporary_name`).
NEW = f"{SCRATCH}/new"


def key_of(*values: Any) -> str:
    """Hex sha256 of what decides a folder's bytes: pydantic models, numbers, texts, and lists of these."""
    plain = [value.model_dump(mode="json") if hasattr(value, "model_dump") else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


def finish(folder: Path, outs: Iterable[Path], result: str = "") -> None:
    """Says that a work folder has its whole output, once that is on the disk: what is left to do only removes files.

    Args:
        folder: the work folder.
        outs: what of it is output.
        result: what a run that is killed after this needs of it, see `result_of`.
    """
    for out in outs:
        fsync_all(out)
    write_text(folder / _KEY_FILE, json.dumps({"key": _key_in(folder), "finished": True, "result": result}) + "\n")


def is_finished(folder: Path) -> bool:
    """Whether a run was killed after `finish`."""
    return bool(json.loads((folder / _KEY_FILE).read_bytes()).get("finished"))


def result_of(folder: Path) -> str:
    """What `finish` was given."""
    return str(json.loads((folder / _KEY_FILE).read_bytes())["result"])


@contextmanager
def work_directory(path: Path, made_by: str | None, key: str) -> Iterator[Path]:
    """Yields the work folder of the output `path`, and puts it at `path` when the block succeeds.

    Unlike the folder of `files.replace_directory` it survives a failure or a kill, and the next run with the same key
    gets it.

    Args:
        path: absent, empty, or made by the same stage; see `files.require_replaceable`.
        made_by: the stage, for the mark; None if the block takes over what is at `path`, with or without a mark.
        key: `key_of` what decides the bytes.

    Raises:
        LockedError: another run works there.
        DataError: `path` may not be replaced.
    """
    path = Path(path)
    require_replaceable(path, made_by)
    make_parent(path)
    folder = path.with_name(f".{path.name}.part")
    with tried(path.with_name(f".{path.name}.lock")) as ours:
        if not ours:
            raise LockedError(f"{path}: another process is making it; wait for it, or stop it")
        _prepare(path, folder, key)
        if made_by is not None:  # a kill came after it was marked and before it was put at `path`
            (folder / MARK).unlink(missing_ok=True)
        with naming(path):
            yield folder
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)
        for file in [file for file in folder.rglob("*") if is_temporary(file)]:  # killed tasks left them
            file.unlink(missing_ok=True)
        if made_by is not None:
            mark(folder, made_by)
        fsync_all(folder)
        require_replaceable(path, made_by)
        swap(folder, path)
        if folder.exists():
            _discard(folder, path)
        (path / _KEY_FILE).unlink()  # last: with the key in it, the next run takes back what a kill left at `path`
        fsync(path)


def _key_in(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _KEY_FILE).read_bytes())["key"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _prepare(path: Path, folder: Path, key: str) -> None:
    """Makes the work folder unless it is there with this key. Call it only while no other process works there."""
    clear_leftovers(path)
    clear_leftovers(folder)  # of a `swap` below
    if _key_in(folder) == key:
        clear_leftovers(folder / NEW)
        return
    if _key_in(path) is not None:  # a run was killed after it had put its folder at `path`
        if _key_in(path) == key and _key_in(folder) is None:
            swap(path, folder)
            return
        (path / _KEY_FILE).unlink()
    if folder.exists():
        if _key_in(folder) is not None:
            say(f"{folder}: discarding the work of an earlier run, which had other parameters, data or code")
        elif marked(folder) is None and any(folder.iterdir()):
            raise DataError(f"{folder}: is not a work folder of align, but has the name of one; move it away")
        _discard(folder, path)
    new = temporary_name(path)
    new.mkdir()
    write_text(new / _KEY_FILE, json.dumps({"key": key}) + "\n")
    os.replace(new, folder)
    fsync(folder.parent)


def _discard(folder: Path, path: Path) -> None:
    """Removes a work folder; what a kill leaves of it is a leftover next to `path`."""
    doomed = temporary_name(path)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
