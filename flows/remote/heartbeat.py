"""A worker's signs of life: labels of its flow run, which the head of the run looks at (`flows.remote.send`)."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client

from flows.remote.order import HEARD, MAX_LABEL_BYTES, RUNTIME, SAID

#: Seconds between two signs.
EVERY_S = 3.0


class Heartbeat:
    """While this context is open, a number grows, and what the stage says is passed on.

    Attributes:
        progress: the file in which the stage says how far it is; None: it has not begun.
    """

    def __init__(self, run_id: UUID) -> None:
        self.progress: Path | None = None
        self._runtime = ""
        self._id = run_id
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever the server does, the stage's result stays."""
        self._done.set()
        self._thread.join(EVERY_S)  # two writers of labels would lose one's
        if self._runtime:
            with suppress(Exception), get_client(sync_client=True) as client:  # the result does not depend on it
                client.update_flow_run_labels(self._id, {RUNTIME: self._runtime})

    def passes_on(self, runtime: Path) -> None:
        """Keeps what the stage measured of itself, which the head gets at the end."""
        self._runtime = runtime.read_text("utf-8")[:MAX_LABEL_BYTES]

    def _beat(self) -> None:
        number = 0
        while not self._done.is_set():
            with suppress(Exception), get_client(sync_client=True) as client:  # another client after each failure
                while not self._done.is_set():
                    number += 1
                    self._send(client, number)
                    self._done.wait(EVERY_S)
            self._done.wait(EVERY_S)

    def _send(self, client: SyncPrefectClient, number: int) -> None:
        said = ""
        if self.progress is not None:
            with suppress(OSError):
                said = self.progress.read_text("utf-8", "replace")[:MAX_LABEL_BYTES]
        client.update_flow_run_labels(self._id, {HEARD: number, SAID: said})
