"""Decodes pictures in small helper processes, which may be stopped. This module is both ends of the pipe.

A helper decodes what could take much memory or time, or crash its process: large pictures, and formats whose decoders
parse much before they decode (AVIF, TIFF) or are partly written in Python (BMP). Its
memory is limited to what the header says the picture takes, and its time to a deadline. A helper that passes one of
them ends; its picture is an error with a reason, and the next picture gets a new helper.

A helper starts when it is first needed (a fifth of a second), serves one thread at a time, imports Pillow but neither
NumPy nor torch (25 MB), and ends with the process that started it. Its environment is empty, and it gets no new
descriptor once it serves: no file, no socket. What else its user may do, a decoder that hostile bytes have taken over
may do, too.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from PIL import Image

from align.errors import DataError
from align.pairs.picture_header import PictureError, outline
from align.pairs.picture_pixels import memory_bytes, one_line, open_picture, rgb

#: The limits on pixels, memory and scans keep decoding near or below 10 s. This deadline is for the cases that they
#: miss. It counts the helper's own CPU time, so that no picture fails because the machine is busy.
_DEADLINE_CPU_S = 60
#: For a helper that hangs without working.
_DEADLINE_S = 600
#: Memory that a decoder always needs in addition to the pixels.
_SPARE_BYTES = 64 << 20
#: Memory to read a header with.
_HEADER_BYTES = 128 << 20
_PIPE_BYTES = 1 << 20
#: A variable by which some Pythons find their own library.
_NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from align.pairs.picture_process import serve; serve()"
)


class _Gone(Exception):
    """The helper has ended, or was ended."""


class Helper:
    """A process that decodes one picture at a time."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[2]), *sys.path]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SERVE, json.dumps(paths)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                env={name: os.environ[name] for name in _NEEDED if name in os.environ},
            )  # fmt: skip
        except OSError as error:
            raise DataError(
                f"cannot start a process to decode pictures in ({one_line(error)}); end other processes and run again"
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        for pipe in (self._requests, self._replies):
            _widen(pipe.fileno())
        self._deadline = time.monotonic() + _DEADLINE_S
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        try:
            self._receive()
        except _Gone:
            self.end()
            raise DataError(
                f"the process to decode pictures in does not start; try `{sys.executable} -c 'import PIL.Image'`"
            ) from None

    def size(self, data: bytes) -> tuple[str, int, int, int]:
        """Format, width and height as seen, and the bytes of memory that decoding takes. Raises as `pixels`."""
        reply = self._ask({"memory": _HEADER_BYTES, "decode": False}, data)
        return reply["format"], reply["width"], reply["height"], reply["memory"]

    def pixels(self, data: bytes, memory: int, hint_px: int | None) -> Image.Image:
        """The picture in RGB, see `align.pairs.picture_pixels.rgb`.

        Args:
            data: the file's bytes.
            memory: bytes that decoding may take.
            hint_px: see there.

        Raises:
            PictureError: broken, or it took too much memory or time, or crashed its decoder.
        """
        reply = self._ask({"memory": memory + _SPARE_BYTES, "decode": True, "hint": hint_px}, data)
        width, height, rows = reply["width"], reply["height"], reply["rows"]
        if rows >= height:
            return Image.frombytes("RGB", (width, height), self._pixels(width * height))
        whole = Image.new("RGB", (width, height))
        for top in range(0, height, rows):
            size = (width, min(rows, height - top))
            whole.paste(Image.frombytes("RGB", size, self._pixels(size[0] * size[1])), (0, top))
        return whole

    @property
    def alive(self) -> bool:
        """Whether it can take another picture."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process at once, from any thread; a caller that waits for its answer gets a PictureError."""
        self._process.kill()

    def end(self) -> int:
        """Ends the process even while it works, and returns its exit code."""
        self.close_pipes()
        self._process.kill()
        return self._process.wait()

    def close_pipes(self) -> None:
        """Without its pipes the process ends by itself, if it is not decoding."""
        for pipe in (self._requests, self._replies):
            with suppress(OSError):
                pipe.close()

    def _ask(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
        self._deadline = time.monotonic() + _DEADLINE_S
        try:
            _send(self._requests, request | {"seconds": _DEADLINE_CPU_S}, data)
            reply = self._receive()
        except (BrokenPipeError, _Gone):
            raise PictureError(self._reason()) from None
        if "error" in reply:
            raise PictureError(reply["error"])
        return reply

    def _reason(self) -> str:
        late = time.monotonic() >= self._deadline
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if late else 10)
        code = self.end()
        if late:
            return f"did not decode within {_DEADLINE_S} s"
        if code == -signal.SIGXCPU:
            return f"did not decode within {_DEADLINE_CPU_S} s of CPU time"
        return f"crashed its decoder ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def _pixels(self, num: int) -> bytearray:
        try:
            return self._read(3 * num)
        except _Gone:
            raise PictureError(self._reason()) from None

    def _receive(self) -> dict[str, Any]:
        (size,) = struct.unpack("<I", self._read(4))
        reply: dict[str, Any] = json.loads(self._read(size))
        return reply

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            left = self._deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(1000 * left):
                raise _Gone
            count = os.readv(self._replies.fileno(), [view[filled:]])
            if not count:
                raise _Gone
            filled += count
        return data


_idle: list[Helper] = []
_lock = threading.Lock()


@contextmanager
def helper() -> Iterator[Helper]:
    """Lends a helper to this thread."""
    with _lock:
        lent = _idle.pop() if _idle else None
    if lent is not None and not lent.alive:
        lent.end()
        lent = None
    if lent is None:
        lent = Helper()
    try:
        yield lent
    except PictureError:
        raise
    except BaseException:  # in the middle of a message
        lent.end()
        raise
    finally:
        if lent.alive:
            with _lock:
                _idle.append(lent)


def end_idle() -> None:
    """Ends the helpers that nobody uses."""
    with _lock:
        while _idle:
            _idle.pop().end()


#: The parent's helpers in a forked process, kept so that nothing waits for them.
_not_ours: list[Helper] = []


def _leave_to_parent() -> None:
    global _lock
    _lock = threading.Lock()
    for other in _idle:
        other.close_pipes()
    _not_ours.extend(_idle)
    _idle.clear()


atexit.register(end_idle)
os.register_at_fork(after_in_child=_leave_to_parent)


#: In a helper on Linux: the descriptor of the kernel's file about its memory.
_own_memory: list[int] = []


def serve() -> NoReturn:
    """The helper's side: answers requests until its input ends."""
    import resource

    import PIL.ImageCms  # noqa: F401 - as all of Pillow's plugins: later there is nothing to import from

    Image.init()
    with suppress(OSError):  # only Linux has this file
        _own_memory.append(os.open("/proc/self/statm", os.O_RDONLY))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # so that no library writes between the replies
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    warnings.simplefilter("ignore")
    _confine(resource)
    _send(replies, {})
    while head := requests.read(4):
        request = json.loads(requests.read(*struct.unpack("<I", head)))
        data = requests.read(request["size"])
        _limit(resource, request["memory"] + 3 * len(data), request["seconds"])
        try:
            _answer(replies, request, data)
        except PictureError as error:
            _send(replies, {"error": str(error)})
        _limit(resource)
        del data
    os._exit(0)


def _confine(resource: Any) -> None:
    """This process gets no new descriptor, makes no file larger and leaves no memory behind."""
    free = os.dup(0)  # the lowest number that is free
    os.close(free)
    for kind, most in ((resource.RLIMIT_NOFILE, free), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


def _answer(replies: BinaryIO, request: dict[str, Any], data: bytes) -> None:
    opened = open_picture(data, outline(data))
    if not request["decode"]:
        size = opened.width_px, opened.height_px
        memory = memory_bytes(opened.outline, opened.image.mode, size[0] * size[1])
        _send(replies, {"format": opened.outline.format, "width": size[0], "height": size[1], "memory": memory})
        return
    image = rgb(opened, request["hint"])
    width, height = image.size
    rows = max(1, _PIPE_BYTES // width)
    _send(replies, {"width": width, "height": height, "rows": rows})
    for top in range(0, height, rows):
        whole = rows >= height
        strip = image if whole else image.crop((0, top, width, min(top + rows, height)))
        _write(replies, strip.tobytes())


def _limit(resource: Any, more_bytes: int | None = None, more_s: int = 0) -> None:
    """Limits this process to so much memory and CPU time beyond what it has used; None lifts the limits."""
    space = cpu_s = resource.RLIM_INFINITY
    if more_bytes is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = math.ceil(usage.ru_utime + usage.ru_stime) + more_s
        for statm in _own_memory:  # only there the limit works
            space = int(os.pread(statm, 100, 0).split()[0]) * resource.getpagesize() + more_bytes
    for kind, limit in ((resource.RLIMIT_AS, space), (resource.RLIMIT_CPU, cpu_s)):
        _, most = resource.getrlimit(kind)
        known = [one for one in (limit, most) if one != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(known, default=resource.RLIM_INFINITY), most))


def _send(pipe: Any, message: dict[str, Any], data: bytes | None = None) -> None:
    text = json.dumps(message if data is None else message | {"size": len(data)}).encode()
    head = struct.pack("<I", len(text)) + text
    if data is not None and len(data) <= 1 << 16:
        head, data = head + data, None
    _write(pipe, head)
    if data is not None:
        _write(pipe, data)


def _write(pipe: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def _widen(pipe: int) -> None:
    """Makes room for most pictures at once. Best effort."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
