"""Leases: if several machines share only an object store, one of them at a time does a piece of work.

A lease is a small object that names its holder. It is taken by a conditional write, which the server lets one of
several writers make, and renewed at a third of its time. A lease that was not renewed in time is taken over, again by a
conditional write: its machine is lost, or cut off. Only the server's clock tells its age, so the clocks of the machines
do not matter.

A holder that was cut off may still work when another has taken its lease over. So a lease saves work, but the result
must be safe with two holders: it is stored so that the first one counts as a whole.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from align.display.console import say
from align.errors import AlignError
from align.interfaces.store import ConditionalObjects, StoredObject

#: Servers give times in whole seconds: the age of an object may seem this much too high.
_RESOLUTION_S = 1.0
#: A lease this far in the future was written before the server's clock was set back: it would never grow old.
_FUTURE_S = 10.0
#: The content of a lease that nobody holds.
_FREE = json.dumps({"holder": None}).encode()


class Lease:
    """One holder's access to a lease.

    Args:
        objects: the store.
        name: of the lease's object.
        timeout_s: a lease that was not renewed for this long may be taken over.
    """

    def __init__(self, objects: ConditionalObjects, name: str, timeout_s: float) -> None:
        self._objects, self._name, self._timeout_s = objects, name, timeout_s
        self._holder, self._number = secrets.token_hex(16), 0
        self._etag: str | None = None

    def acquire(self) -> bool:
        """Takes the lease if it is free, or was not renewed in time.

        Raises:
            ServiceError, DataError: as `ConditionalObjects`; all methods do, and a later call may succeed.
        """
        found = self._objects.read(self._name)
        if found is not None and found.data != _FREE and -_FUTURE_S < found.age_s <= self._timeout_s + _RESOLUTION_S:
            return False
        return self._write(found)

    def use(self, objects: ConditionalObjects) -> None:
        """Uses another connection to the store from now on."""
        self._objects = objects

    def renew(self) -> bool:
        """Starts the time again; False if another holder has taken the lease over."""
        return self._etag is not None and self._write(StoredObject(b"", self._etag, 0.0))

    def release(self) -> None:
        """Frees the lease, if it is still this holder's."""
        if self._etag is not None:
            self._objects.write(self._name, _FREE, self._etag)
            self._etag = None

    def _write(self, old: StoredObject | None) -> bool:
        self._number += 1  # no two contents are equal, so each has an ETag of its own
        data = json.dumps({"holder": self._holder, "number": self._number}).encode()
        etag = self._objects.write(self._name, data, old.etag if old else None)
        if etag is None:  # refused; or it was done, the answer was lost and the request repeated
            found = self._objects.read(self._name)
            etag = found.etag if found is not None and self._holder.encode() in found.data else None
        self._etag = etag  # only now: if the read fails, the lease may still be this holder's
        return etag is not None


@contextmanager
def leased(
    objects: ConditionalObjects, name: str, timeout_s: float, renewed_by: ConditionalObjects | None = None
) -> Iterator[bool]:
    """Yields whether this process has the lease; if so, a thread renews it until the block ends, which frees it.

    Args:
        objects: the store.
        name: of the lease's object.
        timeout_s: a lease that was not renewed for this long may be taken over.
        renewed_by: the same store for renewals, which must end long before the lease does; None: `objects`.

    Raises:
        ServiceError, DataError: the server is unavailable, or refuses, when the block begins. Later failures cost the
            lease, not the work.
    """
    lease = Lease(objects, name, timeout_s)
    if not lease.acquire():
        yield False
        return
    lease.use(renewed_by or objects)
    done = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, name, timeout_s, done), daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        with suppress(AlignError):  # then it ends by itself
            lease.release()


def _renew(lease: Lease, name: str, timeout_s: float, done: threading.Event) -> None:
    while not done.wait(timeout_s / 3):
        with suppress(AlignError):  # the server may be back, or the credentials new, before the lease ends
            if not lease.renew():
                say(f"{name}: another machine has taken this work over; the result of the first to finish counts")
                return
