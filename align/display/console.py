"""What commands print: results on stdout, messages and progress on stderr, for the person who watches.

All that is printed passes through `visible`, since addresses and messages come from strangers. If the reader has gone
(`| head`), the rest is not printed, and the command does its work to the end: half a purge helps nobody.

Nothing here changes a byte of any output, so no stage depends on it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

from align.display.visible import visible

T = TypeVar("T")

#: Seconds between two progress lines if stderr is not a terminal (a log, a flow run).
PROGRESS_INTERVAL_S = 5.0
#: A flow names a file in this variable, and shows on its page what a stage writes there: the last lines, and how far
#: its work is. Nobody has to read numbers out of words.
PROGRESS_VARIABLE = "ALIGN_PROGRESS_FILE"
NUM_LINES = 12


def say(message: str, *, done: int | None = None, total: int | None = None, per_s: float | None = None) -> None:
    """Prints one line on stderr.

    Args:
        message: the line.
        done, total, per_s: the progress of the work that the line is about, in its own units, if it is about any.
    """
    _print([message], sys.stderr)
    if file := os.environ.get(PROGRESS_VARIABLE):
        line = visible(message)
        work = {} if done is None else {"line": line, "done": done, "total": total, "per_s": per_s}
        with suppress(OSError):  # of a disk that is full: the work itself will say so
            _write(Path(file), line, work)


def _write(file: Path, line: str, work: dict[str, Any]) -> None:
    """Adds a line to the file that a flow reads; a line without progress keeps the file's.

    A stage may be several processes: what the launcher of the ranks says at its end must not hide their progress.
    """
    lines: list[str] = []
    with suppress(OSError, ValueError, LookupError, TypeError):  # there is no file yet, or it is damaged
        said = json.loads(file.read_bytes())
        lines, work = list(said["lines"]), work or dict(said["work"])
    part = Path(f"{file}.{os.getpid()}")
    part.write_text(json.dumps({"lines": [*lines, line][-NUM_LINES:], "work": work}), encoding="utf-8")
    part.replace(file)


def show(*lines: str) -> None:
    """Prints a result on stdout; each argument becomes one line."""
    _print(lines, sys.stdout)


def show_json(text: str) -> None:
    """Prints a JSON text on stdout in its layout; characters that a terminal would obey are escaped as in JSON."""
    _print(text.rstrip("\n").split("\n"), sys.stdout)


def say_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of an error that nothing has caught. For `sys.excepthook`."""
    _print("".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"), sys.stderr)


def _print(lines: Iterable[str], stream: TextIO) -> None:
    text = "".join(f"{visible(line)}\n" for line in lines)
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))  # a terminal may know ASCII only
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # Python flushes the stream once more when it ends
        os.close(nowhere)


def track(items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows progress on stderr: a bar on a terminal, one line every few seconds in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=visible(what), total=total, unit="", leave=False)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL_S:
            last = now
            of = f" of {total:,}" if total else ""
            rate = count / (now - start)
            say(f"{what}: {count:,}{of}, {rate:,.0f}/s", done=count, total=total, per_s=rate)


def duration(seconds: float) -> str:
    """Seconds in words, such as `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
