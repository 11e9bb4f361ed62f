"""A small web server on loopback that misbehaves on demand; fast enough not to hold up a benchmark.

In a test it runs in a thread: `with WebServer() as server: server.routes["/a.jpg"] = response(b"...")`. A route is an
answer's bytes, or a function of the request that returns them or goes on writing in a coroutine of its own. Hostile
behaviours stand below.
"""

from __future__ import annotations

import asyncio
import gzip
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET

_REASONS = {200: "OK", 301: "Moved Permanently", 404: "Not Found", 429: "Too Many Requests"}


@dataclass
class Request:
    """What a client asked for.

    Attributes:
        path: with the query.
        headers: their names in lower case.
        count: how often this path was asked for, this time included.
        server: which was asked.
    """

    path: str
    headers: dict[str, str]
    count: int
    transport: asyncio.Transport
    server: WebServer

    def write(self, data):
        self.transport.write(data)

    def cut(self):
        """Closes the connection after what was written."""
        self.transport.close()

    def reset(self):
        """Breaks the connection off with a RST."""
        self.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def response(body=b"", status=200, **headers):
    """An answer; `X_Robots_Tag="noai"` is a header, and one with value "" is left out, Content-Length too."""
    names = {"Content_Type": "image/jpeg", "Content_Length": len(body)} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in names.items() if value != "")
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n{lines}\r\n".encode() + body


class WebServer:
    """Serves until the block is left.

    Attributes:
        port: the same for all its addresses.
        routes: by path, without the query.
        fallback: for all other paths.
        requests: the paths asked for, in order, each with its Host header before it.
        agents: the User-Agent headers seen.
        num_connections: so far.
        most_open: connections at a time, at most.
        num_stuck: requests so far that never get (the rest of) an answer.
    """

    def __init__(self, address="127.0.0.1", *, records=True):
        self.addresses = [address] if isinstance(address, str) else address
        self.port = 0
        self.records = records
        self.routes = {}
        self.fallback = response(b"", 404)
        self.requests = []
        self.agents = set()
        self.num_connections = 0
        self.num_open = 0
        self.most_open = 0
        self.num_stuck = 0
        self._counts = {}
        self._loop = asyncio.new_event_loop()
        self._tasks = set()
        self.transports = set()

    def url(self, path, host=None):
        return f"http://{host or self.addresses[0]}:{self.port}{path}"

    def count(self, path):
        """How often a path was asked for, of any host."""
        return self._counts.get(path, 0)

    def __enter__(self):
        started = threading.Event()
        self._thread = threading.Thread(target=self.serve, args=(started.set,), daemon=True)
        self._thread.start()
        assert started.wait(60)
        return self

    def __exit__(self, *exception):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def serve(self, ready):
        """Serves in this thread, for ever or until `__exit__`."""
        asyncio.set_event_loop(self._loop)
        servers = []
        for address in self.addresses:  # all on one port
            starting = self._loop.create_server(lambda: _Connection(self), address, self.port, backlog=1024)
            servers.append(self._loop.run_until_complete(starting))
            self.port = servers[0].sockets[0].getsockname()[1]
        ready()
        self._loop.run_forever()
        for server in servers:
            server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        for transport in self.transports:  # of clients that keep connections
            transport.abort()
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def answer(self, request):
        path = request.path.partition("?")[0]
        route = self.routes.get(path, self.fallback)
        if self.records:
            self._counts[path] = request.count = self._counts.get(path, 0) + 1
            self.requests.append(request.headers.get("host", "") + request.path)
            self.agents.add(request.headers.get("user-agent", ""))
        answer = route if isinstance(route, bytes) else route(request)
        if isinstance(answer, bytes):
            request.write(answer)
        else:
            task = self._loop.create_task(self._carry_out(request, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, request, answer):
        with suppress(ConnectionError):
            await answer


class _Connection(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.buffer = b""

    def connection_made(self, transport):
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.transports.add(transport)
        self.server.num_connections += 1
        self.server.num_open += 1
        self.server.most_open = max(self.server.most_open, self.server.num_open)

    def connection_lost(self, error):
        self.server.num_open -= 1
        self.server.transports.discard(self.transport)

    def data_received(self, data):
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:]) if self.server.records else {}
            self.server.answer(Request(lines[0].split(" ")[1], headers, 1, self.transport, self.server))


# How servers misbehave. Each is a route.


def slow_loris(pause_s):
    """A header, then a byte at a time, for ever."""

    async def go(request):
        request.write(response(Content_Length=100_000))
        request.server.num_stuck += 1
        while not request.transport.is_closing():
            request.write(b"x")
            await asyncio.sleep(pause_s)

    return go


async def silent(request):
    """No answer at all."""
    request.server.num_stuck += 1


async def endless_body(request):
    """Chunks without end."""
    request.write(response(Content_Length="", Transfer_Encoding="chunked"))
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    while not request.transport.is_closing():
        request.write(chunk)
        await asyncio.sleep(0.001)


async def endless_headers(request):
    """A header line after the other."""
    request.write(b"HTTP/1.1 200 OK\r\n")
    while not request.transport.is_closing():
        request.write(b"X-Filler: " + b"y" * 1000 + b"\r\n")
        await asyncio.sleep(0)


def breaks_off(body, sent, *, reset=False):
    """A body that ends after `sent` bytes, by a closed or a reset connection."""

    async def go(request):
        request.write(response(Content_Length=len(body)) + body[:sent])
        await asyncio.sleep(0.02)
        if reset:
            request.reset()
        else:
            request.cut()

    return go


def gzip_bomb(size):
    """Zeros, compressed a thousandfold."""
    return response(gzip.compress(bytes(size), 9), Content_Encoding="gzip")


def after_failures(num, failure, body):
    """Fails so many times, then answers."""
    return lambda request: failure if request.count <= num else response(body)


def delayed(delay_s, answer):
    """Answers, but late."""

    async def go(request):
        await asyncio.sleep(delay_s)
        request.write(answer)

    return go


def redirect(location, status=301):
    """Points elsewhere."""
    return response(b"moved", status, Location=location, Content_Type="text/plain")
