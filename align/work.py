"""What stages share to work shard by shard: a folder that a killed run resumes in, ranges of shards, worker processes.

A stage with many shards keeps what is done in a work folder beside its output (`.NAME.part`), each piece committed by
a rename. The folder carries a key, a digest of everything that decides about its bytes: a run with the same key goes on
there, another key starts anew. Ranges (`--shards 0-499`) work in the same folder, in any order, on any number of
machines that share it; `--finish` then makes the output of it, and names what is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from align.errors import DataError, LockedError
from align.files import fsync, write_text

In = TypeVar("In")
Out = TypeVar("Out")
Held = TypeVar("Held")

_KEY_FILE = ".work.json"
#: Tasks handed to the workers beyond those that they work on: bounds what waits in memory.
_AHEAD = 2
#: Items in flight per thread.
_WINDOW = 16


@dataclass(frozen=True)
class Part:
    """Which part of a stage's work a command is asked for.

    Attributes:
        shards: only these shard numbers; None: all.
        finish: make the output of what the ranges left; a missing shard is an error instead of work.
    """

    shards: range | None = None
    finish: bool = False


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a stage that works in ranges."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--shards",
        metavar="A-B",
        help="do only these shards of the work, both included; ranges run in any order, anywhere",
    )
    group.add_argument("--finish", action="store_true", help="make the output of the ranges; a missing one is named")


def part_of(args: argparse.Namespace) -> Part:
    """The part that `add_part_arguments` describes. Raises DataError for a malformed range."""
    return Part(shard_range(args.shards) if args.shards else None, bool(args.finish))


def shard_range(text: str) -> range:
    """`0-499` or `7`, both ends included.

    Raises:
        DataError: anything else, or an empty range.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not numbers:
        raise DataError(f"--shards {text}: expected a range such as 0-499, or one number")
    return numbers


def key_of(*values: Any) -> str:
    """A digest of what decides about a folder's bytes: pydantic models, numbers, texts, lists of them."""
    plain = [value.model_dump(mode="json") if hasattr(value, "model_dump") else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True, default=str).encode()).hexdigest()


@contextmanager
def work_directory(path: Path, key: str, part: Part = Part()) -> Iterator[Path]:
    """Yields the work folder of the output `path`; where the block ends well it takes the output's place.

    Unlike `stage.replace_directory` it outlives a failure or a kill, and is handed to the next run with the same key.
    With a range the folder stays a work folder, whatever happens.

    Raises:
        LockedError: another run works there (ranges may share it).
        DataError: `--finish`, and no range has worked there under this key.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    with _locked(path.with_name(f".{path.name}.lock"), shared=part.shards is not None, what=path):
        _prepare(folder, key, part)
        yield folder
        if part.shards is not None:
            return
        (folder / _KEY_FILE).unlink()
        for file in folder.rglob("*"):
            if file.is_file():
                fsync(file)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(folder, path)
        fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def _prepare(folder: Path, key: str, part: Part) -> None:
    try:
        known = json.loads((folder / _KEY_FILE).read_bytes())["key"]
    except (FileNotFoundError, ValueError, KeyError):
        known = None
    if known == key:
        return
    if part.finish:
        raise DataError(f"{folder}: no work under these parameters, data and code to finish; run the ranges first")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    write_text(folder / _KEY_FILE, json.dumps({"key": key}) + "\n")


@contextmanager
def _locked(path: Path, *, shared: bool, what: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{what}: another process is making it; wait for it, or end it") from None
        yield


def missing(names: Sequence[str], done: Callable[[str], bool]) -> list[str]:
    """The names that are not done."""
    return [name for name in names if not done(name)]


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Of ranges that share a work folder, one does what is in the block while the others wait."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_done(stage: str, names: Sequence[str], done: Callable[[str], bool]) -> None:
    """Raises DataError that names the shards which no range has done."""
    left = [int(name) for name in missing(names, done)]
    if left:
        raise DataError(
            f"{stage}: {len(left):,} of {len(names):,} shards are missing: {_ranges(left)}; "
            f"run `align {stage} --shards` for them"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 7`; at most ten ranges are spelled out."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in found[:10]]
    return ", ".join(texts) + (f" and {len(found) - 10} more ranges" if len(found) > 10 else "")


def in_processes(
    function: Callable[[In], Out],
    items: Iterable[In],
    num_workers: int | None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Out]:
    """`map` over worker processes; results in the order of the items, few of them in memory at a time.

    Workers end with this process, however it ends. With one worker the work is done right here. `around` is entered by
    each worker, before its first item.

    Raises:
        What the function raises; DataError where a worker was killed (most likely for its memory).
    """
    return in_processes_with(around, partial(_without, function), items, num_workers)


def _without(function: Callable[[In], Out], _: None, item: In) -> Out:
    return function(item)


def in_processes_with(
    resource: Callable[[], AbstractContextManager[Held]],
    function: Callable[[Held, In], Out],
    items: Iterable[In],
    num_workers: int | None,
) -> Iterator[Out]:
    """`in_processes`, where each worker holds something for all of its items, such as connections.

    A worker of its own process makes it with its first item, and does not close it: its end does.
    """
    count = num_workers or os.cpu_count() or 1
    if count == 1:
        with resource() as held:
            yield from map(partial(function, held), items)
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(_work, resource, function, item))
            if len(pending) >= count + _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for its memory; lower engine.num_workers and run again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


#: What this worker process holds.
_held: list[Any] = []


def _work(resource: Callable[[], AbstractContextManager[Held]], function: Callable[[Held, In], Out], item: In) -> Out:
    if not _held:
        _held.append(resource().__enter__())
    return function(_held[0], item)


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: after `kill -9` nothing goes on writing beside the next run."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_threads(function: Callable[[In], Out], items: Iterable[In], num_threads: int) -> Iterator[Out]:
    """`map` in threads, results in the order of the items, with few of them in memory at a time."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[Out]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= _WINDOW * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
