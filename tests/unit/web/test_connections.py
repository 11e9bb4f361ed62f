"""A server's connections are bounded in number and in time, and new ones are taken whatever the others do."""

import asyncio
import errno
import socket
import threading
import time
from base64 import b64encode
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType

import pytest
from websockets.sync.client import connect

from align.web import connections
from align.web.connections import Bounds, listening, server, shorten
from align.web.guard import Guard
from tests.support.mlflow_server import free_port

LARGE = b"x" * 20_000_000
UNFINISHED = b"GET / HTTP/1.1\r\nhost: a\r\nx-more: "


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
        return
    body = LARGE if scope["path"] != "/" else b"hello"
    if scope["path"] == "/later":
        await asyncio.sleep(4)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    for start in range(0, len(body), 1 << 16):
        more = start + (1 << 16) < len(body)
        await send({"type": "http.response.body", "body": body[start : start + (1 << 16)], "more_body": more})


@contextmanager
def serving(bounds):
    claim, port = free_port()
    made = server(app, bounds, lifespan="off")
    thread = threading.Thread(target=made.run, args=([listening("127.0.0.1", port)],), daemon=True)
    thread.start()
    try:
        while not made.started:
            time.sleep(0.01)
        yield port
    finally:
        made.should_exit = made.force_exit = True
        thread.join()
        claim.close()


def connected(port, says, source="127.0.0.1"):
    made = socket.create_connection(("127.0.0.1", port), 20, (source, 0))
    made.sendall(says)
    return made


def answer(port, source="127.0.0.1"):
    with connected(port, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", source) as one:
        return b"".join(iter(lambda: one.recv(1 << 16), b""))


def is_open(one):
    one.setblocking(False)
    try:
        return bool(one.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_heads_that_never_end_take_bounded_room_and_nobody_elses():
    with serving(Bounds(total=30, of_address=20, wait_s=60)) as port, ExitStack() as stack:
        first = stack.enter_context(connected(port, UNFINISHED))
        here = [stack.enter_context(connected(port, UNFINISHED)) for _ in range(50)]
        wait(lambda: sum(map(is_open, here)) == 20)
        assert not is_open(first) and is_open(here[-1])  # the oldest went
        assert answer(port).endswith(b"hello") and answer(port, "127.0.0.2").endswith(b"hello")
        there = [stack.enter_context(connected(port, UNFINISHED, "127.0.0.3")) for _ in range(50)]
        wait(lambda: sum(map(is_open, here + there)) == 30)
        assert answer(port, "127.0.0.4").endswith(b"hello")


def test_a_head_has_a_deadline_and_so_has_the_next_one_of_a_connection():
    with serving(Bounds(total=30, of_address=None, wait_s=0.5)) as port, ExitStack() as stack:
        dripping = [
            stack.enter_context(connected(port, says))
            for says in (UNFINISHED, b"", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" + UNFINISHED)
        ]
        answered = b""
        while not answered.endswith(b"hello"):
            answered += dripping[2].recv(1 << 16)

        def drip():
            for one in dripping:
                with suppress(OSError):
                    one.send(b"x")
            return not any(map(is_open, dripping))

        wait(drip)


CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
LINES, BLANKS = b"a:\r\n", b"a:" + b" \t" * 50 + b"\r\n"
REFUSED = (
    (b"GET / HTTP/1.1\r\nhost: a\r\n" + 100 * LINES + b"\r\n", b"at most 100 headers"),
    (b"GET / HTTP/1.1\r\nhost: a\r\n" + BLANKS + b"\r\n", b"at most 100 headers"),
    (b"GET / HTTP/1.1\r\nhost: a\r\na: " + 40_000 * b"x" + b"\r\n\r\n", b"32,768 bytes"),
    (CHUNKED + b"1\r\nx\r\n0\r\n\r\n", b"with its length"),
    (CHUNKED + b"0\r\na: b\r\n\r\n", b"with its length"),
)


@pytest.mark.parametrize(("says", "reason"), REFUSED, ids=["headers", "blanks", "long", "chunks", "trailers"])
@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"], ids=["first", "second"])
def test_what_h11_would_take_long_for_is_refused_before_that(says, reason, before):
    with serving(Bounds(30, None, 60)) as port, connected(port, before + says) as one:
        answered = b""
        with suppress(ConnectionError):
            while part := one.recv(1 << 16):
                answered += part
        assert answered.count(b"HTTP/1.1 200") == bool(before), answered
        assert b"HTTP/1.1 400" in answered and reason in answered


def test_a_full_head_and_an_empty_body_in_chunks_are_taken():
    last = b"GET / HTTP/1.1\r\nconnection: close\r\nhost: a\r\n" + 98 * LINES + b"\r\n"
    with serving(Bounds(30, None, 60)) as port:
        for parts in ([CHUNKED + b"0\r\n\r\n" + last], [CHUNKED, b"0", b"\r", b"\n", b"\r", b"\n" + last]):
            with connected(port, b"") as one:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for part in parts:
                    one.sendall(part)
                    time.sleep(0.01)
                assert b"".join(iter(lambda: one.recv(1 << 16), b"")).count(b"hello") == 2, parts


def test_an_answer_that_was_long_in_coming_is_sent_whole_to_who_reads_slowly():
    with serving(Bounds(total=1, of_address=1, wait_s=3)) as port:
        ask = b"GET /later HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", port))
            slow.sendall(ask)
            time.sleep(1)
            assert not _answers(port)  # it keeps its place
            time.sleep(5)  # the answer comes after 4 s; then the client reads
            parts = 0
            while part := slow.recv(1 << 16):
                parts += len(part)
            assert parts > len(LARGE)


def test_who_does_not_read_is_cut_off_and_who_reads_slowly_is_not():
    with serving(Bounds(total=30, of_address=None, wait_s=0.5)) as port:
        ask = b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        with connected(port, ask) as deaf, connected(port, ask) as slow:
            read = 0
            begins = time.monotonic()
            while part := slow.recv(1 << 20):
                read += len(part)
                if time.monotonic() - begins < 4:
                    time.sleep(0.2)
            assert read > len(LARGE)
            parts = 0
            with suppress(ConnectionError):
                while part := deaf.recv(1 << 20):
                    parts += len(part)
            assert parts < len(LARGE)


def test_a_websocket_waits_as_long_as_it_likes_and_counts_until_it_is_closed():
    with serving(Bounds(total=2, of_address=None, wait_s=0.3)) as port, ExitStack() as stack:
        sockets = [stack.enter_context(connect(f"ws://127.0.0.1:{port}/")) for _ in range(2)]
        time.sleep(2)  # the sweep is each second
        for one in sockets:
            one.send("still here")
            assert one.recv(60) == "still here"
        assert not _answers(port)
        sockets[0].close()
        wait(lambda: _answers(port))


def _answers(port):
    try:
        return answer(port).endswith(b"hello")
    except ConnectionError:
        return False


def test_there_are_fewer_than_the_process_may_open_files(monkeypatch):
    monkeypatch.setattr(connections, "_file_limit", lambda: 1024)
    assert server(app, Bounds(5000, None, 1.0)).config.bounds.total == 1024 - 256  # type: ignore[attr-defined]  # ours


def test_a_connection_that_cannot_be_taken_is_said_once(capsys):
    made = server(app, Bounds(5, None, 1.0))
    loop = asyncio.new_event_loop()
    for _ in range(1000):
        made._failed(loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})  # type: ignore[attr-defined]  # ours
    loop.close()
    assert capsys.readouterr().err == "server: new connections wait: Too many open files\n"


def test_a_log_stays_short_while_it_is_written(tmp_path):
    log = tmp_path / "search.log"
    with log.open("ab", buffering=0) as file:
        for number in range(10):
            file.write(b"%d\n" % number * 100)
            shorten(log, 500)
        file.write(b"last\n")
    kept = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert len(kept) == 2 and kept[0].endswith(b"last\n") and all(len(one) <= 1000 for one in kept)


NAMES = ("prefect:4200", "prefect.example.com")
GET = MappingProxyType({"method": "GET"})


def status(host, names=NAMES, **headers):
    """What a request gets."""
    return guard_answer(host, names, **headers)[0]


def guard_answer(host, names=NAMES, login=None, how=GET, **headers):
    """Status and body of what a request gets."""
    sent = []
    reached = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    async def receive():
        return {}

    pairs = [
        (b"host", host.encode()),
        *((key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()),
    ]
    scope = {"type": "http", "path": "/", "headers": pairs, **how}
    guard = Guard(app, 4200, login, names, policy=b"default-src 'none'", login_of="of HERE", reader="bob:looks")
    asyncio.run(guard(scope, receive, send))
    assert bool(reached) == (sent[0].get("status") == 200)
    return int(sent[0].get("status", sent[0].get("code", 0))), b"".join(each.get("body", b"") for each in sent)


def test_it_answers_under_its_names_only():
    assert [status(host) for host in ("127.0.0.1:4200", *NAMES)] == [200, 200, 200]
    assert [status(host) for host in ("evil.example", "prefect", "prefect:4201", "")] == [403] * 4
    assert status("prefect:4200", names=()) == 403


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("prefect.example.com", "https://prefect.example.com", 200),  # behind a proxy with TLS
        ("prefect:4200", "http://prefect:4200", 200),
        ("prefect:4200", "http://prefect.example.com", 403),  # a page of one name does not reach another
        ("127.0.0.1:4200", "http://127.0.0.1:4200", 200),
        ("127.0.0.1:4200", "https://127.0.0.1:4200", 403),
        ("127.0.0.1:4200", "http://prefect:4200", 403),
        ("prefect:4200", "http://evil.example", 403),
    ],
)
def test_it_answers_to_pages_of_the_same_name(host, origin, expected):
    assert status(host, origin=origin) == expected
    assert status(host, origin=origin, sec_fetch_site="cross-site") == 403


def test_who_does_not_know_the_login_is_told_where_it_is_and_nothing_of_it():
    told = (401, b"log in with the user and the password of HERE\n")
    assert guard_answer("prefect:4200", login="ann:secret") == told
    assert guard_answer("prefect:4200", login="ann:secret", authorization="Basic YW5uOndyb25n") == told
    assert guard_answer("prefect:4200", login="ann:secret", authorization="Basic YW5uOnNlY3JldA==") == (200, b"")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        *(({"method": method}, 200) for method in ("GET", "HEAD")),
        *(({"method": method}, 403) for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "QUERY")),
        ({"type": "websocket"}, 1008),
    ],
)
def test_the_second_login_reads_and_changes_nothing(how, expected):
    looks = f"Basic {b64encode(b'bob:looks').decode()}"
    assert guard_answer("prefect:4200", login="ann:secret", how=how, authorization=looks)[0] == expected
    assert guard_answer("prefect:4200", login="ann:secret", how=how, authorization=f"{looks}x")[0] in (401, 1008)
    assert guard_answer("evil.example", login="ann:secret", how=how, authorization=looks)[0] in (403, 1008)
