"""How a stage works shard by shard: a folder in which a killed run resumes, and ranges of shards.

A stage with many shards keeps its finished pieces in a work folder next to its output (`.NAME.part`); a rename commits
each piece. The folder carries a key, a digest of everything that decides its bytes: a run with the same key resumes
there, a run with another key starts again. Ranges (`--shards 0-499`) share the folder; they run in any order, on any
number of machines. `--finish` then turns the folder into the output, or names the missing shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
    require_replaceable,
    swap,
    temporary_name,
    write_text,
)
from align.durable.locks import take, tried
from align.errors import DataError, LockedError

_KEY_FILE = ".work.json"
#: The folder in every work folder for the locks of the processes that make its pieces.
CLAIMS = ".claims"


@dataclass(frozen=True)
class Portion:
    """The portion of a stage's work that one command does.

    Attributes:
        shards: do only these shard numbers; None: all of them.
        finish: make the output from the shards of earlier ranges; a missing shard is an error and is not made.
    """

    shards: range | None = None
    finish: bool = False


#: All shards, and the output.
ALL = Portion()


def portion_of(args: argparse.Namespace) -> Portion:
    """The portion that `align.arguments.stages.portion` describes. Raises DataError for a malformed range."""
    return Portion(shard_range(args.shards) if args.shards else None, bool(args.finish))


def shard_range(text: str) -> range:
    """Parses `0-499` or `7`; both ends are included.

    Raises:
        DataError: the text is anything else, or the range is empty.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not numbers:
        raise DataError(f"--shards {text}: expected a range such as 0-499, or one number")
    return numbers


def key_of(*values: Any) -> str:
    """Hex sha256 of what decides a folder's bytes: pydantic models, numbers, texts, and lists of these."""
    plain = [value.model_dump(mode="json") if hasattr(value, "model_dump") else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


@contextmanager
def work_directory(
    path: Path, made_by: str | None, key: str, portion: Portion = ALL, *, elsewhere: bool = False
) -> Iterator[Path]:
    """Yields the work folder of the output `path`, and puts it at `path` when the block succeeds.

    Unlike the folder of `files.replace_directory` it survives a failure or a kill, and the next run with the same key
    gets it. After a range it always stays a work folder.

    Args:
        path: absent, empty, or made by the same stage; see `files.require_replaceable`.
        made_by: the stage, for the mark; None if the block takes over what is at `path`, with or without a mark.
        key: `key_of` what decides the bytes.
        portion: of the work.
        elsewhere: the ranges worked on other machines, so `--finish` may begin where there is no work folder here.

    Raises:
        LockedError: another run works there; ranges may share it, if they have the same key.
        DataError: `--finish`, and no range has worked there under this key, or with `elsewhere`: ranges have worked
            there under another key; or `path` may not be replaced.
    """
    path = Path(path)
    require_replaceable(path, made_by)
    make_parent(path)
    folder = path.with_name(f".{path.name}.part")
    with ExitStack() as locks:
        if portion.shards is None:
            locks.enter_context(_locked(path))
            _prepare(path, folder, key, finish=portion.finish, elsewhere=elsewhere)
        else:
            locks.enter_context(_shared(path, folder, key))
        if made_by is not None:  # a kill came after it was marked and before it was put at `path`
            (folder / MARK).unlink(missing_ok=True)
        yield folder
        if portion.shards is not None:
            return
        shutil.rmtree(folder / CLAIMS, ignore_errors=True)
        for file in [file for file in folder.rglob("*") if is_temporary(file)]:  # killed ranges left them
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


def _has_key(folder: Path, key: str) -> bool:
    return _key_in(folder) == key


def _key_in(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _KEY_FILE).read_bytes())["key"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _prepare(path: Path, folder: Path, key: str, *, finish: bool = False, elsewhere: bool = False) -> None:
    """Makes the work folder unless it is there with this key. Call it only while no other process works there."""
    clear_leftovers(path)
    clear_leftovers(folder)  # of a `swap` below
    if _has_key(folder, key):
        return
    if _key_in(path) is not None:  # a run was killed after it had put its folder at `path`
        if _has_key(path, key) and _key_in(folder) is None:
            swap(path, folder)
            return
        (path / _KEY_FILE).unlink()
    if finish and not elsewhere:
        raise DataError(f"{folder}: no work under these parameters, data and code to finish; run the ranges first")
    if folder.exists():
        if _key_in(folder) is not None:
            if finish:
                raise DataError(
                    f"{folder}: work under other parameters, data or code, which --finish does not discard; move or "
                    "remove it, then finish"
                )
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds `path` for one process alone."""
    with tried(path.with_name(f".{path.name}.lock")) as ours:
        if not ours:
            raise LockedError(f"{path}: another process is making it; wait for it, or stop it")
        yield


@contextmanager
def _shared(path: Path, folder: Path, key: str) -> Iterator[None]:
    """Holds `path` together with other ranges of the same key; the first of them makes the work folder.

    Ranges begin one after the other, so the one that makes the folder, or discards one of another key, is alone with
    it.
    """
    with path.with_name(f".{path.name}.lock").open("a+") as file:
        with one_at_a_time(path.with_name(f".{path.name}.begin.lock"), f"{path}: other ranges to begin"):
            if not take(file, shared=True):
                raise LockedError(f"{path}: another process is making it; wait for it, or stop it")
            if not _has_key(folder, key):
                if not take(file):
                    raise LockedError(
                        f"{path}: ranges with other parameters, data or code are at work there; wait for them or stop "
                        "them, or choose another folder"
                    )
                _prepare(path, folder, key)
                if not take(file, shared=True):
                    raise LockedError(f"{path}: another process has begun to make it; wait for it, or stop it")
        yield


@contextmanager
def one_at_a_time(lock: Path, what: str, *, wait: bool = True) -> Iterator[bool]:
    """Lets one process run the block while others wait. The system ends the lock of a process that is killed.

    Yields True; or, without waiting, whether this is the one.

    Args:
        lock: a file; it is made, and stays.
        what: a process that waits says that it waits for this.
        wait: whether to wait for another process; otherwise the block runs beside it, and gets False.
    """
    with lock.open("a+") as file:
        mine = take(file)
        if not mine and wait:
            say(f"waiting for {what}")
            mine = take(file, patience_s=None)
        yield mine


def missing(names: Sequence[str], done: Callable[[str], bool]) -> list[str]:
    """The names that are not done."""
    return [name for name in names if not done(name)]


def asked(stage: str, portion: Portion, numbers: Sequence[int]) -> list[int]:
    """The shards that a command does, of those that there are (`numbers`, in order).

    Jobs of equal ranges may end beyond the last shard: a line says so, and the shards that exist are done.

    Raises:
        DataError: a range has none of them.
    """
    if portion.shards is None:
        return list(numbers)
    some = [number for number in numbers if number in portion.shards]
    text = f"{portion.shards[0]}-{portion.shards[-1]}"
    if not some:
        there = f"its shards are {_ranges(numbers)}" if numbers else "it has no shards"
        raise DataError(f"{stage}: --shards {text}: none of them exists; {there}")
    if portion.shards[-1] > numbers[-1]:
        say(f"{stage}: --shards {text}: the last shard is {numbers[-1]}")
    return some


def require_done(stage: str, names: Sequence[str], done: Callable[[str], bool]) -> None:
    """Raises DataError, with the numbers of the missing shards, unless all are done."""
    undone = [int(name) for name in missing(names, done)]
    if undone:
        raise DataError(
            f"{stage}: {len(undone):,} of {len(names):,} shards are missing: {_ranges(undone)}; "
            f"run `align {stage} --shards` for them"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Such as `0-3, 7`; only the first ten ranges are written out."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges[:10]]
    return ", ".join(texts) + (f" and {len(ranges) - 10} more ranges" if len(ranges) > 10 else "")
