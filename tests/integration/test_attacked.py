"""`align serve` beside an attack: 50 honest clients, each of an address of its own, get their answers in time.

The bars hold for two cores that nothing else uses. Where others do, they are as many times higher as work takes longer
there: a program that runs beside them counts that.
"""

import asyncio
import os
import resource
import subprocess
import sys
import time
from itertools import count, repeat

import pytest

from align.arguments.commands import READY
from tests.support import ROOT, answers, attacks, hostile_pictures, wait_until
from tests.support.colours import square
from tests.support.killing import kill_family
from tests.support.mlflow_server import free_port

USERS, SECONDS, PAUSE_S = 50, 10.0, 1.0
#: For text queries, for queries by a picture, whose decoding shares a core with the attack, and for /health.
BARS_S = (1.0, 2.0, 0.1)
#: Prints how many times longer than alone 50 milliseconds of work take.
COUNTS = """
import sys, time
times, ends = [], time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < ends:
    begins, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < 0.05:
        pass
    times.append((time.perf_counter() - begins) / (time.process_time() - used))
    time.sleep(0.3)
print(sorted(times)[len(times) // 2])
"""

pytestmark = [pytest.mark.kill, pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A server of the ready search."""
    claim, port = free_port()
    command = [sys.executable, "-m", "align.cli", "serve", "--ready", str(ROOT / READY), "--port", str(port)]
    log = tmp_path_factory.mktemp("attacked") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}/health?ready=true"
        wait_until(lambda: answers(url), 180, alive=lambda: process.poll() is None, says=log.read_text)
        yield port
        assert process.poll() is None and log.stat().st_size < 10_000, log.read_text()[-2000:]
    finally:
        kill_family(process.pid)
        process.wait()
        claim.close()


async def _asks(port, address, requests, pause_s):
    """How long each answer took, until SECONDS have passed. A client whose idle connection was closed makes another."""
    times, ends = [], time.perf_counter() + SECONDS
    reader, writer = None, None
    while time.perf_counter() < ends:
        request, begins = next(requests), time.perf_counter()
        for _ in range(3):
            try:
                if writer is None or writer.is_closing():
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                break
            except (OSError, asyncio.IncompleteReadError):
                writer = None
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        times.append(time.perf_counter() - begins)
        await asyncio.sleep(pause_s)
    if writer is not None:
        writer.close()
    return times


async def _honest(port):
    """The 99th percentiles of text queries, of queries by a picture and of /health, in seconds."""
    host = f"HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"

    def texts(user):
        for number in count():
            yield f"GET /search?limit=10&text=red+heart+{user}+{time.monotonic_ns()}+{number} {host}\r\n".encode()

    picture = square("red")
    by_picture = f"POST /search/image {host}content-length: {len(picture)}\r\n\r\n".encode() + picture
    async with asyncio.timeout(6 * SECONDS):
        *users, pictures, health = await asyncio.gather(
            *(_asks(port, f"127.0.1.{user + 1}", texts(user), PAUSE_S) for user in range(USERS)),
            _asks(port, "127.0.2.1", repeat(by_picture), PAUSE_S),
            _asks(port, "127.0.2.2", repeat(f"GET /health {host}\r\n".encode()), 0.05),
        )
    return [_p99([one for some in users for one in some]), _p99(pictures), _p99(health)]


def _p99(times):
    return sorted(times)[int(len(times) * 0.99)]


@pytest.mark.parametrize("name", ["nothing", "words", "heads", "keys", "pictures", "pieces", "lines", "starts", "ends"])
def test_honest_clients_get_their_answers(port, name, tmp_path):
    picture = tmp_path / "slow.jpg"
    picture.write_bytes(hostile_pictures.progressive(4400, 88))  # 19 megapixels, 98 scans
    command = [sys.executable, "-I", "-S", attacks.__file__, name, str(port), str(picture)]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    attacker = subprocess.Popen(command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    try:
        time.sleep(2)
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", COUNTS, str(SECONDS)], stdout=-1) as counts:
            found_s = asyncio.run(_honest(port))
            slower = float(counts.communicate()[0])
        assert attacker.poll() is None
    finally:
        attacker.kill()
        attacker.wait()
    texts, pictures, health = found_s
    print(
        f"{name}: p99 of texts {texts:.2f} s, of pictures {pictures:.2f} s, of /health {health:.3f} s; "
        f"work takes {slower:.1f} times as long as alone; load {os.getloadavg()[0]:.1f}"
    )
    assert all(found < bar * slower for found, bar in zip(found_s, BARS_S, strict=True))
