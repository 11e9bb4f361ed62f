"""Who does the tasks of a stage: processes of this machine, or a cluster. `align.services.executors` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Task(Generic[Kept, In, Out]):
    """What an executor does with each item. For a cluster all of it can be pickled, like the items and the results.

    Only small things pass through it, such as names and counts: what is made goes from machine to machine as files.

    Attributes:
        resource: a process opens it before its first item and keeps it for later ones, such as connections. It gets the
            folder that a cluster's machine has for files of tasks; None in a process of this machine.
        function: does one item, with the open resource.
        name_of: what messages call an item.
        instead: gives the result of an item that kills its process again and again, so that the others are done; None:
            such an item ends the run.
    """

    resource: Callable[[Path | None], AbstractContextManager[Kept]]
    function: Callable[[Kept, In], Out]
    name_of: Callable[[In], str] = str
    instead: Callable[[In], Out] | None = None


class Executor(Protocol):
    """Does items: each at least once, in any order. A task commits its own files, so doing it twice changes nothing."""

    @property
    def num_at_once(self) -> int:
        """How many items are done at the same time, at most."""

    @property
    def is_cluster(self) -> bool:
        """Whether tasks may run on other machines."""

    def map(self, task: Task[Kept, In, Out], items: Sequence[In]) -> Iterator[Out]:
        """The results, in the order of the items.

        Raises:
            What the task's function raises. DataError, if an item kills its process again and again; the message names
            it. ServiceError, if the cluster is unavailable.
        """
        ...
