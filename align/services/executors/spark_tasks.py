"""Tasks on a Spark cluster: Spark retries them, repeats slow ones if it is told to, and counts them.

Each machine needs this environment: `spark.archives` brings it, or it is installed there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align.display.console import say
from align.durable.processes import Culprits, Worker, in_threads
from align.errors import ServiceError
from align.interfaces.executor import In, Kept, Out, Task
from align.services.executors.task import Result, result_of, worker_in
from align.services.spark_engine import clear_errors

#: Items of one job of Spark, for each task at once.
_ITEMS_AT_ONCE = 4
#: What Spark says of a task whose process has ended, and of one whose machine has.
_LOST = ("Python worker exited unexpectedly", "ExecutorLostFailure")
_KILLED = (
    "its process was lost on each try, the last ones with nothing beside it; most likely it needs more memory than "
    "spark.executor.memoryOverhead leaves it: raise that, or take it out of the data"
)


class SparkExecutor:
    """See `Executor`.

    Args:
        session: a classic one.
        num_at_once: a bound. None: as many as the cluster has cores for this application; then two jobs run at a time,
            so that none waits for another's last task.
    """

    is_cluster = True

    def __init__(self, session: Any, num_at_once: int | None) -> None:
        self._context = session.sparkContext
        self._num_at_once = num_at_once

    @property
    def num_at_once(self) -> int:
        """See `Executor`."""
        return self._num_at_once or int(self._context.defaultParallelism)

    def map(self, task: Task[Kept, In, Out], items: Sequence[In]) -> Iterator[Out]:
        """See `Executor`."""
        partition = partial(_partition, task, str(Path.cwd()), secrets.token_bytes(8))
        size = self.num_at_once * _ITEMS_AT_ONCE
        jobs = [items[start : start + size] for start in range(0, len(items), size)]
        num_tasks = self._num_at_once or size
        culprits = Culprits(task)

        def run(some: Sequence[In]) -> list[Result[Out] | None]:
            """The results; None for an item whose process was lost, alone and again and again."""
            names = ", ".join(task.name_of(item) for item in some[:3]) + (", ..." if len(some) > 3 else "")
            try:
                with clear_errors(f"{names}: "):
                    tasks = self._context.parallelize(some, min(num_tasks, len(some)))
                    done: list[Result[Out] | None] = tasks.mapPartitions(partition).collect()
                    return done
            except ServiceError as error:
                if not any(lost in str(error.__cause__) for lost in _LOST):
                    raise
            if len(some) == 1:
                return [None]
            say(f"spark: a task lost its process again and again; its {len(some)} item(s) are done one by one")
            return [result for item in some for result in run([item])]

        for some, results in zip(jobs, in_threads(run, jobs, 1 if self._num_at_once else 2), strict=True):
            for item, result in zip(some, results, strict=True):
                if result is None:
                    yield culprits.result(item, _KILLED)
                else:
                    culprits.num_good += 1
                    yield result.get()
        culprits.require_good_items()


def _partition(task: Task[Kept, In, Out], folder: str, opened_as: bytes, items: Iterable[In]) -> Iterator[Result[Out]]:
    """The items of a task, on a worker of Spark. Its folder there ends with the application."""
    from pyspark import SparkFiles

    if opened_as not in _worker:
        _worker.clear()
        _worker[opened_as] = worker_in(folder, task, Path(SparkFiles.getRootDirectory()))
    for item in items:
        yield result_of(_worker[opened_as], item)


#: The one of this process, by its map: Spark keeps a process for later partitions, and gives it nothing to keep.
_worker: dict[bytes, Worker[Any, Any, Any]] = {}
