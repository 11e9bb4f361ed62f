"""Queries that come at the same time are embedded together.

One thread computes. While it works on one batch the next requests wait in a queue with a bound, and then it takes what
is there: nobody waits for a batch to fill. Texts are answered before the pictures of their batch, which take longer.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from align.search.service.served import Served

Rows = NDArray[np.float32]

#: Texts and pictures that one forward pass embeds together; queries that wait, of which one more gets 503; embeddings
#: of texts that are kept, since people ask for them again.
_MAX_BATCH, _MAX_WAITING, _REMEMBERED_TEXTS = 64, 256, 4096


class BusyError(HTTPException):
    """Too much waits; the client has to come again."""

    def __init__(self) -> None:
        super().__init__(503, "too many queries wait; come again in a second", {"retry-after": "1"})


@dataclass(frozen=True)
class Work:
    """What one request needs of the model.

    Attributes:
        served: the release that it began with.
        texts: to embed.
        crops: (image_px, image_px, 3) uint8 RGB, to embed.
        finish: (text embeddings, image embeddings) -> the answer; runs in the computing thread.
    """

    served: Served
    texts: Sequence[str]
    crops: Sequence[NDArray[np.uint8]]
    finish: Callable[[Rows, Rows], Any]


_Waiting = tuple[Work, "Future[Any]"]


class ModelQueue:
    """The computing thread and its queue.

    Attributes:
        num_passes: forward passes over texts or pictures.
        num_inputs: inputs in them.
        num_remembered: texts that were embedded before.
    """

    def __init__(
        self, *, max_batch: int = _MAX_BATCH, max_waiting: int = _MAX_WAITING, cached_texts: int = _REMEMBERED_TEXTS
    ) -> None:
        """Starts the thread. The constants above say what the arguments are."""
        self._max_batch, self._cached_texts = max_batch, cached_texts
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(max_waiting)
        self._known: OrderedDict[tuple[str, str], Rows] = OrderedDict()  # by release and text
        self.num_passes = self.num_inputs = self.num_remembered = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return self._queue.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    async def do(self, work: Work) -> Any:
        """The answer of `work.finish`. Raises BusyError, also if the thread has ended, or what `finish` raises."""
        future: Future[Any] = Future()
        if not self.is_alive:
            raise BusyError
        try:
            self._queue.put_nowait((work, future))
        except queue.Full:
            raise BusyError from None
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Ends the thread after it has answered what waits."""
        self._ended = True
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not (self._ended and self._queue.empty()):
            batch: list[_Waiting] = []
            size = 0
            while size < self._max_batch and not (batch and self._queue.empty()):
                if (one := self._queue.get()) is None:
                    break
                if one[1].set_running_or_notify_cancel():  # else its client has left
                    batch.append(one)
                    size += len(one[0].texts) + len(one[0].crops) or 1
            groups: dict[tuple[bool, Served], list[_Waiting]] = {}
            for one in sorted(batch, key=lambda one: bool(one[0].crops)):
                groups.setdefault((bool(one[0].crops), one[0].served), []).append(one)
            for (_, served), group in groups.items():
                self._answer(served, group)

    def _answer(self, served: Served, batch: Sequence[_Waiting]) -> None:
        nothing = np.zeros((0, served.embedder.width), np.float32)
        try:
            texts = iter(self._texts(served, [text for work, _ in batch for text in work.texts]))
            crops = [crop for work, _ in batch for crop in work.crops]
            images = iter(served.embedder.embed_pixels(crops) if crops else nothing)
        except BaseException as error:  # noqa: BLE001 - a panic of the tokenizer, which is no Exception, ends no thread
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            for one in batch if len(batch) > 1 else ():
                self._answer(served, [one])
            return
        self.num_passes += bool(crops)
        self.num_inputs += len(crops)
        for work, future in batch:
            mine = list(islice(texts, len(work.texts))), list(islice(images, len(work.crops)))
            try:
                future.set_result(work.finish(*(np.stack(rows) if rows else nothing for rows in mine)))
            except BaseException as error:  # noqa: BLE001 - of this request alone
                future.set_exception(error)

    def _texts(self, served: Served, texts: Sequence[str]) -> list[Rows]:
        keys = [(served.release.digest, text) for text in texts]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            rows = served.embedder.embed_texts([text for _, text in new])
            self._known |= {key: row.copy() for key, row in zip(new, rows, strict=True)}  # a view keeps its batch
        self.num_passes += bool(new)
        self.num_inputs += len(new)
        self.num_remembered += len(keys) - len(new)
        found = [self._known[key] for key in keys]
        for key in keys:
            self._known.move_to_end(key)
        while len(self._known) > self._cached_texts:
            self._known.popitem(last=False)
        return found
