"""A task on another machine: its folder there, and its result or error on the way back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from align.durable import pieces
from align.errors import AlignError, ServiceError
from align.interfaces.executor import In, Kept, Out, Step

#: The resource of this process, by what opens it.
_kept: dict[bytes, Any] = {}


@dataclass(frozen=True)
class Result(Generic[Out]):
    """What became of a task.

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


def do(step: Step[Kept, In, Out], item: In, *, folder: str, scratch: Path, opened_as: bytes) -> Result[Out]:
    """Does one item on a machine of a cluster.

    An error that this machine or a server may be the cause of is raised, so that the cluster tries again elsewhere.

    Args:
        step, item: see `Executor.map`.
        folder: in which the run works; relative paths start there, if this machine has it.
        scratch: a folder of this machine.
        opened_as: names the resource: a process that does several maps opens one for each.
    """
    os.chdir(folder if Path(folder).is_dir() else scratch)
    pieces.work_in(scratch)
    try:
        if opened_as not in _kept:
            _kept.clear()
            _kept[opened_as] = step.resource().__enter__()
        return Result(step.function(_kept[opened_as], item))
    except ServiceError:
        raise
    except AlignError as error:
        return Result(error=error)
