"""The server of the download benchmark: a process of its own, with the sample's pictures."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.pairs.picture import PictureError, read_header
from tests.support import ROOT
from tests.support.web_server import Answer, Request, WebServer, breaks_off, response, silent

#: Short sides, so that each picture is shrunk in the rows that shrink.
SHRUNK_PX = 128
#: Hosts of the row with bad ones: addresses, since the peer resolves no names here.
HOSTS = tuple(f"127.0.1.{i}" for i in range(1, 51))
#: One of the fifty, 2 %.
LIMITED_HOST = HOSTS[7]
_LIMIT, _LIMIT_S = 8, 0.5


@dataclass(frozen=True)
class Served:
    """What the server has."""

    port: int
    num_pictures: int
    num_bytes: int


def pictures(count: int) -> Iterator[bytes]:
    """So many of the sample, larger than `SHRUNK_PX`."""

    def all_of_them() -> Iterator[bytes]:
        with Path(ROOT / "data/sample/archive.warc.gz").open("rb") as file:
            for record in ArchiveIterator(file, record_types=WarcRecordType.response):
                if (record.http_content_type or "").startswith("image/"):
                    data = record.reader.read()
                    try:
                        header = read_header(data)
                    except PictureError:
                        continue
                    if min(header.width_px, header.height_px) > SHRUNK_PX:
                        yield data

    return islice(all_of_them(), count)


@contextmanager
def serving(count: int) -> Iterator[Served]:
    """The server, until the block is left."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, count), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.kill()
        process.join()


def _serve(sender: Connection, count: int) -> None:
    server = WebServer(["127.0.0.1", *HOSTS], records=False)
    sizes = []
    for i, data in enumerate(pictures(count)):
        sizes.append(len(data))
        server.routes[f"/{i}.jpg"] = response(data)
        server.routes[f"/slow/{i}.jpg"] = silent
        server.routes[f"/broken/{i}.jpg"] = breaks_off(data, len(data) // 2)
        server.routes[f"/limited/{i}.jpg"] = _Limit(response(data))
    server.routes["/seconds"] = lambda _: _seconds(server)
    server.serve(lambda: sender.send(Served(server.port, len(sizes), sum(sizes))))


def _seconds(server: WebServer) -> bytes:
    spent = server.last_closed_s - (server.first_opened_s or server.last_closed_s)
    server.first_opened_s = None
    return response(f"{spent:.3f}".encode())


def seconds_since_last_asked(served: Served) -> float:
    """From the first connection since this was last asked to the last one's end: what a client's start-up is not in."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("GET", "/seconds")
    spent = float(connection.getresponse().read())
    connection.close()
    return spent


class _Limit:
    """Eight answers in half a second, then 429."""

    times: ClassVar[deque[float]] = deque()

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def __call__(self, request: Request) -> Answer:
        now = time.monotonic()
        while self.times and self.times[0] < now - _LIMIT_S:
            self.times.popleft()
        if len(self.times) >= _LIMIT:
            return response(b"", 429, Retry_After=1)
        self.times.append(now)
        return self.answer


def hostile_urls(served: Served, count: int) -> list[str]:
    """Of fifty hosts: 5 % never answer, 5 % break off, 5 % are gone, and one host is rate-limited."""
    urls = []
    for i in range(count):
        host = HOSTS[i % len(HOSTS)]
        kind = ("slow/", "broken/", "gone/")[i // len(HOSTS) % 20] if i // len(HOSTS) % 20 < 3 else ""
        if host == LIMITED_HOST:
            kind = "limited/"
        urls.append(f"http://{host}:{served.port}/{kind}{i}.jpg")
    return urls
