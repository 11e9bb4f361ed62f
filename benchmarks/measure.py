"""Side by side: repetitions interleaved, so that other work on the machine meets both; medians; CPU time."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from align.display.console import say
from benchmarks.peak import peak_bytes


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        what: what is done.
        peer: what we are compared with.
        unit: of the two rates.
        ours, theirs: median rates, higher is better.
        ratios: ours / theirs of each repetition.
        note: what else was measured, such as memory.
    """

    what: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratios: tuple[float, ...]
    note: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(
    what: str, peer: str, unit: str, *, items: int, ours_s: Sequence[float], theirs_s: Sequence[float], note: str = ""
) -> Comparison:
    """A row from the seconds that each repetition took for `items` of work; said at once: a later one may fail."""
    row = Comparison(
        what, peer, unit, ours=items / statistics.median(ours_s), theirs=items / statistics.median(theirs_s),
        ratios=tuple(their / our for our, their in zip(ours_s, theirs_s, strict=True)), note=note,
    )  # fmt: skip
    say(f"benchmark: {what} against {peer}: {row.ratio:.2f}x ({row.ours:,.0f} and {row.theirs:,.0f} {unit}); {note}")
    return row


def interleaved(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition of both, after one of each that does not count; who goes first alternates.

    Args:
        ours, theirs: what is compared.
        repetitions: of each.
        clock: CPU seconds of this process, all threads; `time.perf_counter` where waiting counts, too.
    """
    seconds: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for repetition in range(repetitions + 1):
        for function in (ours, theirs) if repetition % 2 else (theirs, ours):
            start = clock()
            function()
            if repetition:
                seconds[function].append(clock() - start)
    return seconds[ours], seconds[theirs]


def cpu_s(function: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_process(function: Callable[..., None], *arguments: object) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, function, arguments))
    process.start()
    sender.close()
    result: tuple[float, int] = receiver.recv()
    process.join()
    return result


def _measured(sender: Connection, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DuckDB draws progress bars on stdout
    start = time.process_time()
    function(*arguments)
    spent = time.process_time() - start
    sender.send((spent, peak_bytes()))  # getrusage would count the parent's memory before exec, too
