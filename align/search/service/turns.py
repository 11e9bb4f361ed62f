"""Clients take turns: a client that sends much waits longer, and others do not wait for it.

What waits is bounded. If that is too much, the client with the most has to come again, even if another one came last.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from starlette.exceptions import HTTPException

T = TypeVar("T")


class BusyError(HTTPException):
    """Too much waits; the client has to come again."""

    def __init__(self) -> None:
        super().__init__(503, "too many queries wait; come again in a second", {"retry-after": "1"})


class Turns(Generic[T]):
    """What waits, by client. Threads share it."""

    def __init__(self, max_waiting: int, max_of_client: int | None = None) -> None:
        """An empty one.

        Args:
            max_waiting: of all clients together.
            max_of_client: items of one client that are in work at a time; None: any number.
        """
        self._max_waiting, self._max_of_client = max_waiting, max_of_client
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._in_work: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._num, self._ended = 0, False

    def __len__(self) -> int:
        return self._num

    def put(self, client: str, item: T) -> T | None:
        """Adds an item. Returns the item that has to leave, which may be the new one; None if there is room."""
        with self._changed:
            gone = None
            if self._num >= self._max_waiting:
                most = max(self._waiting, key=lambda one: len(self._waiting[one]))
                if len(self._waiting[most]) <= len(self._waiting.get(client, ())) + 1:
                    return item
                gone = self._waiting[most].pop()
                self._num -= 1
            self._waiting.setdefault(client, deque()).append(item)
            self._num += 1
            self._changed.notify()
            return gone

    def take(self, *, wait: bool = True) -> tuple[str, T] | None:
        """The next client and its item, which is in work until `done`. None: there is none, or all has ended."""
        with self._changed:
            while True:
                for client, items in self._waiting.items():
                    if self._max_of_client is None or self._in_work[client] < self._max_of_client:
                        item = items.popleft()
                        self._num -= 1
                        self._in_work[client] += 1
                        del self._waiting[client]
                        if items:
                            self._waiting[client] = items  # behind the others
                        return client, item
                if self._ended or not wait:
                    return None
                self._changed.wait()

    def done(self, client: str) -> None:
        """Ends the work on an item of this client."""
        with self._changed:
            self._in_work[client] -= 1
            if not self._in_work[client]:
                del self._in_work[client]
            self._changed.notify()

    def end(self) -> None:
        """`take` no longer waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Threads:
    """Threads that work for clients in turns."""

    def __init__(self, name: str, number: int, *, max_waiting: int, max_of_client: int | None = None) -> None:
        """Starts them. `Turns` describes the other arguments."""
        self._turns: Turns[tuple[Future[Any], Callable[[], Any]]] = Turns(max_waiting, max_of_client)
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    async def do(self, client: str, work: Callable[[], T]) -> T:
        """The result of `work`, or what it raises. Raises BusyError if too much waits."""
        future: Future[T] = Future()
        gone = self._turns.put(client, (future, work))
        if gone is not None and gone[0].set_running_or_notify_cancel():
            gone[0].set_exception(BusyError())
        return await asyncio.wrap_future(future)

    def end(self) -> None:
        """Ends them after what waits is done."""
        self._turns.end()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (taken := self._turns.take()) is not None:
            client, (future, work) = taken
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the thread lives on; who waits gets the error
                future.set_exception(error)
            finally:
                self._turns.done(client)
