"""Queries that come at the same time are embedded together.

One thread computes. While it works on one batch, the next requests wait, by client; then one of each client in turn is
taken into the next batch until that is full, so that nobody waits for a batch to fill. What waits is bounded. Texts
are answered before the pictures of their batch, which take longer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.search.service.served import Served
from align.search.service.turns import BusyError, Turns

Rows = NDArray[np.float32]

#: Texts and pictures that one forward pass embeds together; queries that wait, of which one more gets 503; embeddings
#: of texts that are kept, since people ask for them again.
_MAX_BATCH, MAX_WAITING, _REMEMBERED_TEXTS = 64, 256, 4096


@dataclass(frozen=True)
class Work:
    """What one request needs of the model.

    Attributes:
        served: the release that it began with.
        texts: to embed.
        crops: (image_px, image_px, 3) uint8 RGB, to embed.
        finish: (text embeddings, image embeddings) -> the answer; runs in the computing thread.
        client: who asks.
    """

    served: Served
    texts: Sequence[str]
    crops: Sequence[NDArray[np.uint8]]
    finish: Callable[[Rows, Rows], Any]
    client: str = ""

    @property
    def num_inputs(self) -> int:
        """At least 1."""
        return len(self.texts) + len(self.crops) or 1


@dataclass
class _Waiting:
    work: Work
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


_Outcome = tuple[_Waiting, Any, BaseException | None]


@dataclass
class BatchCounts:
    """What was done: forward passes over texts or pictures, inputs in them, and texts that were remembered."""

    num_passes: int = 0
    num_inputs: int = 0
    num_remembered: int = 0


@dataclass
class _Remembered:
    """Embeddings of the last texts that were asked for, by the release that is served."""

    size: int
    served: Served | None = None
    rows: OrderedDict[str, Rows] = field(default_factory=OrderedDict)

    def of(self, served: Served) -> OrderedDict[str, Rows]:
        if served is not self.served:
            self.served, self.rows = served, OrderedDict()
        return self.rows


class Batcher:
    """The computing thread and its queue."""

    def __init__(
        self, *, max_batch: int = _MAX_BATCH, max_waiting: int = MAX_WAITING, cached_texts: int = _REMEMBERED_TEXTS
    ) -> None:
        """Starts the thread.

        Args:
            max_batch: texts and pictures that are embedded together.
            max_waiting: requests that wait.
            cached_texts: embeddings that are remembered; 0: none.
        """
        self._max_batch = max_batch
        self._turns: Turns[_Waiting] = Turns(max_waiting)
        self._remembered = _Remembered(cached_texts)
        self.counts = BatchCounts()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._turns)

    @property
    def is_alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    async def do(self, work: Work) -> Any:
        """The answer of `work.finish`. Raises BusyError, also if the thread has ended, or what `finish` raises."""
        if not self.is_alive:
            raise BusyError
        loop = asyncio.get_running_loop()
        waiting = _Waiting(work, loop.create_future(), loop)
        if (gone := self._turns.put(work.client, waiting)) is not None:
            _settle([(gone, None, BusyError())])
        return await waiting.future

    def stop(self) -> None:
        """Ends the thread after it has answered what waits."""
        self._turns.end()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (taken := self._turns.take()) is not None:
            batch: list[_Waiting] = []
            size = 0
            while taken is not None:
                client, waiting = taken
                self._turns.done(client)
                batch.append(waiting)
                size += waiting.work.num_inputs
                taken = self._turns.take(wait=False) if size < self._max_batch else None
            for served, has_crops in sorted(
                dict.fromkeys((one.work.served, bool(one.work.crops)) for one in batch), key=lambda part: part[1]
            ):
                mine = [one for one in batch if (one.work.served, bool(one.work.crops)) == (served, has_crops)]
                self._answer(served, mine)

    def _answer(self, served: Served, batch: Sequence[_Waiting]) -> None:
        batch = [waiting for waiting in batch if not waiting.future.cancelled()]  # whose client has left
        try:
            texts = self._texts(served, [text for waiting in batch for text in waiting.work.texts])
            crops = [crop for waiting in batch for crop in waiting.work.crops]
            images = served.embedder.embed_pixels(crops) if crops else np.zeros((0, served.embedder.width), np.float32)
        except BaseException as error:  # noqa: BLE001 - a panic of the tokenizer, which is no Exception, ends no thread
            if len(batch) == 1:
                _settle([(batch[0], None, error)])
            for waiting in batch if len(batch) > 1 else ():
                self._answer(served, [waiting])
            return
        self.counts.num_passes += bool(crops)
        self.counts.num_inputs += len(crops)
        text, image = 0, 0
        outcomes: list[_Outcome] = []
        for waiting in batch:
            work = waiting.work
            mine = texts[text : text + len(work.texts)], images[image : image + len(work.crops)]
            text, image = text + len(work.texts), image + len(work.crops)
            try:
                outcomes.append((waiting, work.finish(*mine), None))
            except BaseException as error:  # noqa: BLE001 - of this request alone
                outcomes.append((waiting, None, error))
        _settle(outcomes)

    def _texts(self, served: Served, texts: Sequence[str]) -> Rows:
        known = self._remembered.of(served)
        new = [text for text in dict.fromkeys(texts) if text not in known]
        self.counts.num_remembered += len(texts) - len(new)
        rows = dict(zip(new, served.embedder.embed_texts(new), strict=True)) if new else {}
        self.counts.num_passes += bool(new)
        self.counts.num_inputs += len(new)
        found = [rows[text] if text in rows else known[text] for text in texts]
        for text in dict.fromkeys(texts):
            if text in known:
                known.move_to_end(text)
            else:
                known[text] = rows[text].copy()  # a view would keep its whole batch
        while len(known) > self._remembered.size:
            known.popitem(last=False)
        return np.stack(found) if found else np.zeros((0, served.embedder.width), np.float32)


def _settle(outcomes: Sequence[_Outcome]) -> None:
    """Hands all answers and errors over together: each wake-up of an event loop costs as much as a search."""

    def settle(mine: Sequence[_Outcome]) -> None:
        for waiting, answer, error in mine:
            if waiting.future.done():  # its client has left
                continue
            if error is not None:
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(answer)

    for loop in dict.fromkeys(waiting.loop for waiting, _, _ in outcomes):
        with suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(settle, [outcome for outcome in outcomes if outcome[0].loop is loop])
