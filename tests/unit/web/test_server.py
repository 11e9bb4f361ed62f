"""What granian is relied on for: heads end, chunks are read, WebSockets wait, what is in flight is answered."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from websockets.sync.client import connect

from align.errors import ServiceError
from align.web import server
from align.web.server import require_free, shorten
from tests.support import ROOT, wait_until
from tests.support.mlflow_server import free_port
from tests.support.served import accepts, serving

UNFINISHED = b"GET / HTTP/1.1\r\nhost: a\r\nx-more: "
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
LINES = b"a:\r\n"


async def app(scope, receive, send):
    """Answers with the length of the body; a WebSocket says what it is told."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/later":
        print("in flight", flush=True)
        await asyncio.sleep(2)
    body = b"x" * 20_000_000 if scope["path"] == "/large" else b"%d bytes" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def unable(scope, receive, send):
    """An application that does not start."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


@contextmanager
def served(**options):
    claim, port = free_port()
    with serving(app, port, **options):
        yield port
    claim.close()


def connected(port, says):
    made = socket.create_connection(("127.0.0.1", port), 20)
    made.sendall(says)
    return made


def answer(port, says=b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"):
    with connected(port, says) as one, suppress(ConnectionError):
        return b"".join(iter(lambda: one.recv(1 << 20), b""))
    return b""


def is_open(one):
    one.setblocking(False)
    try:
        return bool(one.recv(1 << 16))
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_heads_that_never_end_are_closed_and_hold_up_nobody(monkeypatch):
    monkeypatch.setattr(server._HEAD, "header_read_timeout", 500)
    with served() as port, ExitStack() as stack:
        answered = stack.enter_context(connected(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"))
        assert answered.recv(1 << 16).endswith(b"0 bytes")
        waiting = [stack.enter_context(connected(port, says)) for says in (UNFINISHED, b"") for _ in range(20)]
        assert answer(port).endswith(b"0 bytes")
        wait_until(lambda: not any(map(is_open, [answered, *waiting])), 60)


@pytest.mark.parametrize(
    "lines", [7500 * LINES, b"a:" + b" " * 30_000 + b"\0\r\n", b"a: " + 100_000 * b"x" + b"\r\n"],
    ids=["headers", "blanks", "long"],
)  # fmt: skip
def test_heads_that_take_long_to_read_are_refused(lines):
    with served() as port:
        begins = time.process_time()
        refused = answer(port, b"GET / HTTP/1.1\r\nhost: a\r\n" + lines + b"\r\n")
        assert refused.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")) or not refused
        assert time.process_time() - begins < 1


def test_a_body_in_chunks_is_read():
    with served() as port:
        parts = CHUNKED + b"4\r\nfour\r\n" + b"3\r\nand\r\n" + b"0\r\n\r\n"
        assert answer(port, parts + b"GET / HTTP/1.1\r\nconnection: close\r\nhost: a\r\n\r\n").count(b" bytes") == 2


def test_a_websocket_waits_as_long_as_it_likes(monkeypatch):
    monkeypatch.setattr(server._HEAD, "header_read_timeout", 300)
    with served() as port, connect(f"ws://127.0.0.1:{port}/") as one:
        for _ in range(2):
            one.send("still here")
            assert one.recv(60) == "still here"
            time.sleep(1)


def test_who_reads_slowly_gets_the_whole_answer():
    with served() as port, connected(port, b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n") as slow:
        time.sleep(1)
        read = 0
        while part := slow.recv(1 << 20):
            read += len(part)
            time.sleep(0.02)
        assert read > 20_000_000


def test_more_connections_than_there_may_be_wait():
    with served(max_connections=2) as port, ExitStack() as stack:
        held = [stack.enter_context(connected(port, UNFINISHED)) for _ in range(2)]
        time.sleep(0.2)
        with connected(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n") as third:
            third.settimeout(0.5)
            with pytest.raises(TimeoutError):
                third.recv(1)
            held[0].close()
            third.settimeout(60)
            assert third.recv(1 << 16).endswith(b"0 bytes")


def test_a_port_that_is_taken_is_said():
    with served() as port, pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is taken by another program"):
        require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)
    with pytest.raises(ServiceError, match="cannot be used"):
        require_free("192.0.2.1", port)


COMMAND = "import sys; from align.web.server import serve; from tests.unit.web.test_server import *; serve({}, '127.0.0.1', {}, max_connections=9)"  # noqa: E501 - one program


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_is_in_flight(by):
    claim, port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format("app", port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        wait_until(lambda: accepts(port), alive=lambda: process.poll() is None)
        with connected(port, b"GET /later HTTP/1.1\r\nhost: a\r\n\r\n") as one:
            assert any(line == "in flight\n" for line in process.stdout)
            process.send_signal(by)
            told = b""
            while not told.endswith(b"0 bytes"):
                told += (more := one.recv(1 << 16))
                assert more, told
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        claim.close()


def test_an_application_that_does_not_start_ends_it():
    claim, port = free_port()
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format("unable", port)], cwd=ROOT, capture_output=True, text=True
    )
    claim.close()
    assert ended.returncode == 1 and "no database" in ended.stdout and "does not start" in ended.stderr


def test_there_are_fewer_connections_than_the_process_may_open_files(monkeypatch):
    monkeypatch.setattr(server, "_file_limit", lambda: 258)
    made = []
    monkeypatch.setattr(server, "Server", lambda *given, **options: made.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(server.serve_until(asyncio.Event(), app, "127.0.0.1", 0, max_connections=5000))
    assert made[0]["backpressure"] == 2


def test_a_log_stays_short_while_it_is_written(tmp_path):
    log = tmp_path / "search.log"
    with log.open("ab", buffering=0) as file:
        for number in range(10):
            file.write(b"%d\n" % number * 100)
            shorten(log, 500)
        file.write(b"last\n")
    kept = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert len(kept) == 2 and kept[0].endswith(b"last\n") and all(len(one) <= 1000 for one in kept)
