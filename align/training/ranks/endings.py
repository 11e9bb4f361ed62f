"""How an error that one rank alone has ends all ranks, and becomes the run's error.

Most errors come to all ranks alike, such as a loss that is not finite: each returns its own, and the launcher has them.
A sample that cannot be read is the error of one rank. The others would wait for its message (on GPUs for half an hour),
end since the connection is lost, and meet the same error after a restart. So that rank writes its error to the
launcher's store, which the other ranks and those of the next attempt read, and to a file for the launcher.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from torch.distributed import PrefixStore, Store, TCPStore

from align.durable.files import write_bytes
from align.errors import AlignError, NonFiniteLossError, StoppedError, StoppedWaitingError, TrainingError

#: The return value of a rank: None, or the class name and message of the AlignError that ended it.
RankOutcome = tuple[str, str] | None

#: Seconds within which ranks that have the same error all say so.
_ALIKE_S = 5.0
_STORE_ANSWERS = datetime.timedelta(seconds=5)
_RUN, _ERROR, _COUNT = "endings", "error", "ended"


class NotSavedError(TrainingError):
    """The ranks agreed to end, since the leading one could not write a checkpoint."""


class RestartError(TrainingError):
    """A rank cannot continue, and may after a restart: it ends as if it had died."""


#: Errors that all ranks have, or that a rank has since another one died: it was told to end, for all to start again.
_NEVER_ALONE = (StoppedError, NotSavedError, NonFiniteLossError, StoppedWaitingError)


class Endings:
    """Of the ranks of one attempt.

    Args:
        store: the launcher's, the same for all attempts.
        attempt: its number.
        world_size: the ranks.
        file: of this machine's launcher, see `left`.
    """

    def __init__(self, store: Store, attempt: str, world_size: int, file: Path) -> None:
        self._run, self._attempt = PrefixStore(_RUN, store), PrefixStore(f"endings of {attempt}", store)
        self._world_size, self._file = world_size, file

    def known(self) -> RankOutcome:
        """The error that one rank alone had, in this attempt or an earlier one; None if there is none."""
        try:
            return _outcome(self._run.get(_ERROR)) if self._run.check([_ERROR]) else None
        except RuntimeError:  # the store has ended with the leading machine
            return None

    def own(self, error: AlignError) -> RankOutcome:
        """What this rank returns for its error. It does not return where others have none."""
        outcome = type(error).__name__, str(error)
        with suppress(RuntimeError):  # the store has ended with the leading machine
            self._attempt.add(_COUNT, 1)
            if isinstance(error, _NEVER_ALONE) or (self._all_have_one() and self.known() is None):
                return outcome
            outcome = _outcome(self._run.compare_set(_ERROR, "", json.dumps(outcome)))  # of several the first
        return self.leave(outcome)

    def leave(self, outcome: tuple[str, str]) -> NoReturn:
        """Ends this rank as if it had died: a machine whose ranks return would wait for that of a rank which did not.

        At once: the other ranks may wait for this one, and it for them.
        """
        write_bytes(self._file, json.dumps(outcome).encode())
        os._exit(1)

    def _all_have_one(self) -> bool:
        deadline = time.monotonic() + _ALIKE_S
        while self._attempt.add(_COUNT, 0) < self._world_size:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def left(file: Path, endpoint: str) -> RankOutcome:
    """What ended the ranks of this machine, for its launcher: of a rank that has exited it learns no more than that.

    In a file that a rank left, or in the store, where no rank of this machine could leave a file.
    """
    if file.exists():
        return _outcome(file.read_bytes())
    try:
        host, _, port = endpoint.rpartition(":")
        store = PrefixStore(_RUN, TCPStore(host, int(port), is_master=False, timeout=_STORE_ANSWERS))
        return _outcome(store.get(_ERROR)) if store.check([_ERROR]) else None
    except RuntimeError:  # the store has ended
        return None


def _outcome(message: bytes) -> tuple[str, str]:
    name, text = json.loads(message)
    return name, text
