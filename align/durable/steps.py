"""Steps of a stage: what a step makes of an item is the folder STEP/ITEM of the work folder; one rename puts it there.

A result that is there is complete, so an item that is done twice changes nothing: of two makers the second finds the
name taken, and its work is thrown away. Tasks of one machine, and of machines that share a disk, work in one folder.
Machines that share no disk each have a folder of their own, and share finished results through a store (`store.work`):
there the first one that is whole counts.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from align.display.console import track
from align.durable.files import naming, temporary_name
from align.durable.processes import in_threads
from align.durable.work import NEW
from align.errors import DataError
from align.interfaces.executor import Executor, In, Kept, Task
from align.interfaces.store import SharedResults

Made = TypeVar("Made")

#: Results that are brought at the same time.
_NUM_THREADS = 8


@dataclass(frozen=True)
class Work:
    """The results in a work folder. Can be pickled if `shared` can.

    Attributes:
        folder: the work folder.
        shared: where machines without a common disk share results; None: all see the folder.
        is_lent: whether the folder is that of a cluster's machine, which keeps only what its tasks read.
    """

    folder: Path
    shared: SharedResults | None = None
    is_lent: bool = False

    def here(self, scratch: Path | None) -> Work:
        """The same results on the machine of a task; `scratch` is its folder for files of tasks, see `Task`."""
        if self.shared is None or scratch is None:
            return self
        return Work(scratch / hashlib.sha256(self.shared.location.encode()).hexdigest()[:16], self.shared, is_lent=True)

    def make(self, result: str, fill: Callable[[Path], Made]) -> Made | None:
        """Makes a result such as `measured/00000`, unless it is complete somewhere: `fill` gets a new folder.

        Returns:
            What `fill` returns; None if it was not called.

        Raises:
            CorruptError, DataError, ServiceError: as `SharedResults.publish` and `fetch`.
        """
        path, made = self.folder / result, None
        if not path.is_dir():
            if self.shared is not None and self.shared.has(result):
                if not self.is_lent:
                    self.fetch([result])
                return None
            with self._new(result) as out:
                made = fill(out)
                if self.shared is not None and self.is_lent:
                    self.shared.publish(result, out)
                    return made
                _put(out, path)
        if self.shared is not None and not self.shared.publish(result, path):  # another machine's counts
            with self._new(result) as out:
                path.rename(out / "ours")
            self.fetch([result])
        return made

    def fetch(self, results: Iterable[str]) -> None:
        """Brings complete results to this folder, unless they are here.

        Raises:
            DataError: one is not complete anywhere, or as `SharedResults.fetch`.
            CorruptError, ServiceError: as `SharedResults.fetch`.
        """
        lacking = [one for one in results if not (self.folder / one).is_dir()]
        for _ in in_threads(self._fetch, lacking, _NUM_THREADS):
            pass

    def _fetch(self, result: str) -> None:
        with self._new(result) as out:
            if self.shared is None or not self.shared.fetch(result, out):
                raise DataError(f"{self.folder / result}: missing; run the stage again")
            _put(out, self.folder / result)

    def open(self, result: str, file: str) -> BinaryIO:
        """A seekable stream of a file of a complete result: from this folder, or by ranges from the store.

        Raises:
            DataError: the result is not complete anywhere.
            ServiceError: the server is unavailable.
        """
        path = self.folder / result / file
        if path.is_file():
            return path.open("rb")
        if self.shared is None:
            raise DataError(f"{path}: missing; run the stage again")
        return self.shared.open(result, file)

    def lacking(self, results: Sequence[str]) -> list[str]:
        """Those that are complete nowhere, with one question to the store."""
        finished = self.shared.finished() if self.shared else frozenset()
        return [one for one in results if one not in finished and not (self.folder / one).is_dir()]

    def run(
        self,
        step: Step[Any, In],
        items: Mapping[str, In],
        executor: Executor,
        tell: Callable[[Any], object] = lambda made: None,
        lanes: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Makes the results of a step that are complete nowhere; brings all of them here.

        Args:
            step: what to make.
            items: what it is made of, by the names of the results.
            executor: who does it.
            tell: gets what `step.make` returned, but None, for each result that is made now.
            lanes: names, of which a task makes those of one list, one after another; None: each has a task of its own.
        """
        lacking = {result.rpartition("/")[2] for result in self.lacking([f"{step.name}/{name}" for name in items])}
        wanted = [[(name, items[name]) for name in lane if name in lacking] for lane in lanes or zip(items)]
        tasks = [lane for lane in wanted if lane]
        if tasks:  # otherwise processes would start without work
            instead = partial(_make, replace(step, make=step.instead), (self, None)) if step.instead else None
            task = Task(partial(_opened, self, step), partial(_make, step), partial(_names, step), instead)
            for made in track(executor.map(task, tasks), what=step.what, total=len(tasks)):
                for one in made:
                    if one is not None:
                        tell(one)
        self.fetch([f"{step.name}/{name}" for name in items])

    def drop(self, steps: Iterable[str]) -> None:
        """Removes the results of steps that nobody needs any more, each step at once: a part of one counts as whole."""
        with self._new("dropped") as out:
            for name in steps:
                if (self.folder / name).is_dir():
                    (self.folder / name).rename(out / name)

    @contextmanager
    def _new(self, result: str) -> Iterator[Path]:
        """A new folder, which is removed at the end unless it has been renamed."""
        out = temporary_name(self.folder / NEW)
        out.mkdir(parents=True)
        try:
            with naming(self.folder / result):
                yield out
        finally:
            shutil.rmtree(out, ignore_errors=True)


@dataclass(frozen=True)
class Step(Generic[Kept, In]):
    """What a stage makes of each item. Can be pickled.

    Attributes:
        name: of the folder that has its results.
        make: writes the files of an item's result to a new folder: `make(kept, out, item)`.
        needs: the results that it reads whole; `{}` in one is the item's name.
        what: words for progress, such as "shard: shards".
        resource: opened by each process before its first item, for `make`; gets the results on its machine.
        instead: as `make`, for an item that kills each process that makes it; None: such an item ends the run.
    """

    name: str
    make: Callable[[Kept, Path, In], object]
    what: str
    needs: Sequence[str] = ()
    resource: Callable[[Work], AbstractContextManager[Any]] = nullcontext
    instead: Callable[[None, Path, In], object] | None = None


@contextmanager
def _opened(work: Work, step: Step[Kept, Any], scratch: Path | None) -> Iterator[tuple[Work, Kept]]:
    here = work.here(scratch)
    with step.resource(here) as kept:
        yield here, kept


def _make(step: Step[Kept, In], opened: tuple[Work, Kept], lane: Sequence[tuple[str, In]]) -> list[object]:
    work, kept = opened

    def fill(name: str, value: In, out: Path) -> object:
        work.fetch(need.format(name) for need in step.needs)
        return step.make(kept, out, value)

    return [work.make(f"{step.name}/{name}", partial(fill, name, value)) for name, value in lane]


def _names(step: Step[Any, Any], lane: Sequence[tuple[str, Any]]) -> str:
    return f"{step.what}: {', '.join(name for name, _ in lane)}"


def _put(out: Path, path: Path) -> None:
    """Gives a result its name, unless another maker was first."""
    path.parent.mkdir(exist_ok=True)
    try:
        out.rename(path)
    except OSError:
        if not path.is_dir():
            raise
