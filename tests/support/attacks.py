"""What strangers send to `align serve` to hold up others, as a program of its own: `python attacks.py NAME PORT`.

It runs until it is ended, all from 127.0.0.2, with nothing but Python's own library.
"""

import asyncio
import json
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

ADDRESS = "127.0.0.2"
LEAVES = b"<leaves>"
_numbers = count()
#: Before a connection that was closed is made again: the attacker takes little of a machine that it shares.
_PAUSE_S = 0.5


def nothing(port):
    """No attack."""
    return [b""]


def heads(port):
    """1,200 requests whose heads never end."""
    return [f"GET /search?text=red HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nx-more: ".encode()] * 1200


def words(port):
    """Ten filters by many words, @ of them another each time: nothing of them can be remembered."""
    asked = ["+".join(["@", *["a"] * 489]), "+".join(["@-", "a.", ".", "%2C", "-", "(", "'", "!"])] * 5
    return [
        f"GET /search?limit=1&text=red&words={some} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()
        for some in asked
    ]


def keys(port):
    """Four bodies of 60 kB of unknown keys, the longest that are read."""
    return [_post(port, "/embed", json.dumps({f"k{number}": 1 for number in range(5000)}).encode())] * 4


def pictures(port):
    """Six pictures that take seconds to decode; a third argument is the file of one."""
    return [_post(port, "/embed/image", Path(sys.argv[3]).read_bytes())] * 6


def pieces(port):
    """Eight bodies in chunks of one byte."""
    head = f"POST /embed HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head.encode() + b"1\r\nx\r\n" * 40_000] * 8


def lines(port):
    """Eight heads of 7,500 empty headers, and eight of one with 30,000 blanks."""
    head = f"GET /search?text=red HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n".encode()
    return [head + b"a:\r\n" * 7500 + b"\r\n", head + b"a:" + b" " * 30_000 + b"\0\r\n\r\n"] * 8


def starts(port):
    """Eight that ask for what a page begins with."""
    return [f"GET /start HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()] * 8


def ends(port):
    """Eight that leave in the middle of a body."""
    return [LEAVES + _post(port, "/search/image", b"x" * 5000)[:-1]] * 8


def _post(port, path, body):
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _another(request):
    request = request.removeprefix(LEAVES)
    return request if len(request) > 1 << 16 else request.replace(b"@", b"%d" % next(_numbers))


async def _again_and_again(port, request):
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ADDRESS, 0))
            with suppress(OSError):
                writer.write(_another(request))
                await writer.drain()
            while not request.startswith(LEAVES) and await reader.read(1 << 16):
                writer.write(_another(request))  # the next on the same connection
            writer.transport.abort()
        await asyncio.sleep(_PAUSE_S)


async def _attack(port, requests):
    await asyncio.gather(*(_again_and_again(port, request) for request in requests))


if __name__ == "__main__":
    asyncio.run(_attack(int(sys.argv[2]), globals()[sys.argv[1]](int(sys.argv[2]))))
