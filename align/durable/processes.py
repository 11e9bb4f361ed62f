"""`map` in worker processes and in threads: results in the order of the items, with few of them in memory at a time.

A worker process that dies, most likely for its memory, does not end a run silently. The items that were under way are
done again, each alone in a new worker. An item that kills this worker, too, is the culprit: it is named, and left out
if the caller can do without it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NoReturn

from align.display.console import say
from align.errors import DataError
from align.interfaces.executor import In, Kept, Out, Task

#: Tasks that wait for a worker, beyond those under way; a bound on memory.
_AHEAD = 2
#: Items in flight per thread.
_WINDOW = 16
#: With more culprits than this, or this many before the first good item, the cause is the machine, not the items.
_MAX_CULPRITS, _FIRST_CULPRITS = 16, 3


def in_processes(task: Task[Kept, In, Out], items: Iterable[In], count: int) -> Iterator[Out]:
    """Does each item in one of `count` worker processes, which end with this process, even when it is killed.

    One worker means that this process does the work: then an item that takes too much memory gets the whole run killed.

    Raises:
        What the function raises; DataError if a culprit ends the run (it is named), or if there are so many
        that the machine is to blame.
    """
    if count == 1:
        with task.resource(None) as kept:
            yield from map(partial(task.function, kept), items)
        return
    culprits = Culprits(task)
    waiting = iter(items)
    pending: deque[tuple[In, Future[Out] | None]] = deque()
    while True:
        with _workers(count, task) as pool:
            try:
                for result in _while_workers_live(pool, waiting, pending, count + _AHEAD):
                    culprits.num_good += 1
                    yield result
                break
            except BrokenProcessPool:
                pass
        say(f"a worker process was killed, perhaps for its memory; {len(pending)} item(s) are done again, one by one")
        while pending:
            yield _second_try(task, culprits, *pending.popleft())
    culprits.require_good_items()


def _while_workers_live(
    pool: ProcessPoolExecutor,
    waiting: Iterator[In],
    pending: deque[tuple[In, Future[Out] | None]],
    num_pending: int,
) -> Iterator[Out]:
    """Results in order. Raises BrokenProcessPool when a worker dies; `pending` then has all items without a result."""
    while True:
        for item in islice(waiting, num_pending - len(pending)):
            pending.append((item, None))  # first, or it would be lost if the pool is broken
            pending[-1] = item, pool.submit(_work, item)
        if not pending:
            return
        _, future = pending[0]
        assert future is not None
        result = future.result()
        pending.popleft()
        yield result


class Culprits(Generic[In, Out]):
    """Items that kill each process that does them. It judges whether they are the cause, or the machines.

    Attributes:
        num_good: items that have a result of their own, at the first try or the second.
    """

    def __init__(self, task: Task[Any, In, Out]) -> None:
        self._task = task
        self._names: list[str] = []
        self.num_good = 0

    def result(self, item: In, how: str) -> Out:
        """What the task gives instead of the culprit's result; `how` says what is known of it.

        Raises:
            DataError: the task gives nothing instead, or there are too many culprits.
        """
        name = self._task.name_of(item)
        if self._task.instead is None:
            raise DataError(f"{name}: {how}")
        self._names.append(name)
        too_early = self.num_good == 0 and len(self._names) >= _FIRST_CULPRITS
        if too_early or len(self._names) > _MAX_CULPRITS:
            self._blame_the_machine()
        return self._task.instead(item)

    def require_good_items(self) -> None:
        """Raises DataError if every item was a culprit."""
        if self._names and not self.num_good:
            self._blame_the_machine()

    def _blame_the_machine(self) -> NoReturn:
        raise DataError(
            f"worker processes were killed over {len(self._names)} item(s), even when each had a worker alone: "
            f"{', '.join(self._names)}; the machine has too little memory for them, or something else kills "
            "processes there: use a larger machine, or lower engine.memory_limit, and run again"
        )


def _second_try(task: Task[Any, In, Out], culprits: Culprits[In, Out], item: In, future: Future[Out] | None) -> Out:
    """The result of an item, which may have been ready before the worker died; else it is done again, alone."""
    if future is None or future.cancelled() or isinstance(future.exception(), BrokenProcessPool):
        try:
            with _workers(1, task) as pool:
                result: Out = pool.submit(_work, item).result()
        except BrokenProcessPool:
            return culprits.result(
                item,
                "the worker process was killed twice over it, the second time with nothing beside it; most likely it "
                "needs more memory than this machine has: use a larger machine, or take it out of the data",
            )
    else:
        result = future.result()
    culprits.num_good += 1
    return result


@contextmanager
def _workers(count: int, task: Task[Any, Any, Any]) -> Iterator[ProcessPoolExecutor]:
    """New worker processes. At the end it waits for them; items that they have not begun are not done.

    Each gets the task once: it may hold the names of a hundred thousand files.
    """
    spawn, given = multiprocessing.get_context("spawn"), (task.resource, task.function)
    pool = ProcessPoolExecutor(count, spawn, initializer=_begin, initargs=given)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Worker(Generic[Kept, In, Out]):
    """Does items in this process. It opens the resource before the first one and never closes it: see `Task`."""

    def __init__(
        self,
        resource: Callable[[Path | None], AbstractContextManager[Kept]],
        function: Callable[[Kept, In], Out],
        scratch: Path | None = None,
    ) -> None:
        self._resource, self._function, self._scratch = resource, function, scratch
        self._open = ExitStack()

    @cached_property
    def _kept(self) -> Kept:
        return self._open.enter_context(self._resource(self._scratch))

    def do(self, item: In) -> Out:
        """The function's result."""
        return self._function(self._kept, item)


#: The one of this process: a pool gives its processes nothing else to keep.
_worker: list[Worker[Any, Any, Any]] = []


def _begin(resource: Callable[..., Any], function: Callable[..., Any]) -> None:
    when_parent_ends(partial(os._exit, 1))
    _worker.append(Worker(resource, function))


def _work(item: Any) -> Any:
    return _worker[0].do(item)


def when_parent_ends(act: Callable[[], object]) -> None:
    """Calls a function once the process that spawned this one has ended, even by `kill -9`.

    Nothing that it started may work beside the next run. The kernel closes a pipe then, on every system.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            act()

    threading.Thread(target=watch, daemon=True).start()


def in_threads(function: Callable[[In], Out], items: Iterable[In], num_threads: int) -> Iterator[Out]:
    """`map` in threads: results in the order of the items, with few of them in memory at a time."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque[Future[Out]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= _WINDOW * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # after an error, or if the caller has enough, items that wait are not begun
            for future in pending:
                future.cancel()
