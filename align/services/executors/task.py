"""A task on another machine: who does it there, and its result or error on the way back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from align.durable.processes import Worker
from align.errors import AlignError, ServiceError
from align.interfaces.executor import In, Kept, Out, Task


@dataclass(frozen=True)
class Result(Generic[Out]):
    """What became of an item.

    Attributes:
        value: what the function returned.
        error: what it raised, if another try would raise it again.
    """

    value: Out | None = None
    error: AlignError | None = None

    def get(self) -> Out:
        """The value. Raises the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # a function may return None


def worker_in(folder: str, task: Task[Kept, In, Out], scratch: Path) -> Worker[Kept, In, Out]:
    """Makes this process of a cluster's machine a worker.

    Args:
        folder: in which the run works; relative paths start there, if this machine has it.
        task: see `Executor.map`.
        scratch: a folder of this machine.
    """
    os.chdir(folder if Path(folder).is_dir() else scratch)
    return Worker(task.resource, task.function, scratch)


def result_of(worker: Worker[Kept, In, Out], item: In) -> Result[Out]:
    """Does one item.

    An error that this machine or a server may be the cause of is raised, so that the cluster tries again elsewhere.
    """
    try:
        return Result(worker.do(item))
    except ServiceError:
        raise
    except AlignError as error:
        return Result(error=error)
