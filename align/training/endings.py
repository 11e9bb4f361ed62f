"""How an error that one rank alone has ends all ranks, and becomes the run's error.

Most errors come to all ranks alike, such as a loss that is not finite: each returns its own, and the launcher has them.
A sample that cannot be read is the error of one rank. The others wait for it within a message (on GPUs for half an
hour), would then die of their lost connection, and be restarted to meet the same error again. So that rank leaves its
error in the launcher's store, where the other ranks and those of a next attempt look, and in a file for the launcher.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # torch's own names

from align.errors import AlignError, NonFiniteLossError, TrainingError

#: The return value of a rank: None, or the class name and message of the AlignError that ended it.
RankOutcome = tuple[str, str] | None

#: Seconds within which ranks that have the same error all say so.
_ALIKE_S = 3.0
_ERROR, _COUNT = "error", "ended"


class StoppedError(TrainingError):
    """The ranks agreed to end, so each has this error; one of them may still be writing a checkpoint."""


class Endings:
    """Of the ranks of one attempt.

    Args:
        store: the launcher's, the same for all attempts.
        attempt: its number.
        world_size: the ranks.
        file: of this machine's launcher, see `left`.
    """

    def __init__(self, store: Store, attempt: str, world_size: int, file: Path) -> None:
        self._run, self._attempt = PrefixStore("endings", store), PrefixStore(f"endings of {attempt}", store)
        self._world_size, self._file = world_size, file

    def known(self) -> RankOutcome:
        """The error that one rank alone had, in this attempt or an earlier one; None if there is none."""
        try:
            return _outcome(self._run.get(_ERROR)) if self._run.check([_ERROR]) else None
        except RuntimeError:  # the store has ended with the leading machine
            return None

    def own(self, error: AlignError) -> RankOutcome:
        """What this rank returns for its error. It does not return where others do not have one."""
        outcome = type(error).__name__, str(error)
        self._attempt.add(_COUNT, 1)
        if isinstance(error, StoppedError | NonFiniteLossError) or self._all_have_one():
            return outcome
        message = json.dumps(outcome)
        first = self._run.compare_set(_ERROR, "", message)  # of several ranks' errors the first is the run's
        self._file.write_bytes(first)
        os._exit(1)  # at once: the other ranks may wait for this one, and it for them

    def _all_have_one(self) -> bool:
        deadline = time.monotonic() + _ALIKE_S
        while self._attempt.add(_COUNT, 0) < self._world_size:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def left(file: Path) -> RankOutcome:
    """What a rank of this machine left for the launcher, which learns nothing else of a rank that exited."""
    return _outcome(file.read_bytes()) if file.exists() else None


def _outcome(message: bytes) -> tuple[str, str]:
    name, text = json.loads(message)
    return name, text
