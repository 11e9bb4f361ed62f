"""Who does the tasks of a stage: processes of this machine, or a cluster. `align.services.executors` has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Kept = TypeVar("Kept")


class Executor(Protocol):
    """Does tasks: each at least once, in any order. A task commits its own files, so doing it twice changes nothing."""

    @property
    def num_at_once(self) -> int:
        """How many tasks are done at the same time, at most."""

    @property
    def is_cluster(self) -> bool:
        """Whether tasks may run on other machines."""

    def map(
        self,
        resource: Callable[[], AbstractContextManager[Kept]],
        function: Callable[[Kept, In], Out],
        items: Sequence[In],
        *,
        name_of: Callable[[In], str] = str,
        instead: Callable[[In], Out] | None = None,
    ) -> Iterator[Out]:
        """The results, in the order of the items. Everything that it is given can be pickled, and so can results.

        Only small things pass here, such as names and counts: what tasks make goes from machine to machine as files.

        Args:
            resource: a process opens it before its first item and keeps it for later ones, such as connections.
            function: does one item.
            items: what to do.
            name_of: what messages call an item.
            instead: gives the result of an item that kills its process again and again, so that the others are done;
                None: such an item ends the run.

        Raises:
            What the function raises. DataError, if an item kills its process again and again; the message names it.
            ServiceError, if the cluster is unavailable.
        """
        ...
