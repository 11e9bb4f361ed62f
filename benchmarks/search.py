"""Text queries by 50 people at once: `align serve` beside `mlflow models serve`, by `python -m benchmarks.search`.

Both serve the model of a checkout where the pipeline has run (`make demo`), as one process on loopback, and are asked
in turns: five seconds each, five times, by 50 connections that each wait for an answer before they ask again. No text
comes twice within a turn: two neighbouring words of an alt-text and a number, as people search by a word or two. The
answer of MLflow is an embedding; ours is the ten nearest pictures of the index, so ours does more. Throughput by
wall-clock time; the machine's cores are shared with what asks.

`align serve` is measured twice: with texts that are new to it, which is what counts, and where texts come again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import quote

import psutil
import pyarrow.parquet as pq

from align.config import load_params
from align.config.paths import PathsConfig
from align.display.console import say
from benchmarks.measure import conditions
from tests.support.mlflow_server import free_port

USERS, TURN_S, TURNS = 50, 5.0, 5
_START_S = 180


@dataclass
class Server:
    """A server that is measured.

    Attributes:
        name: in the table.
        port: of loopback.
        process: it.
        times_s: of every answer.
        rates: answers a second, of each turn.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    times_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def request(self, text: str) -> bytes:
        """A query, as bytes on the wire."""
        host = f"host: 127.0.0.1:{self.port}\r\n"
        if self.name.startswith("align"):
            return f"GET /search?limit=10&text={quote(text)} HTTP/1.1\r\n{host}\r\n".encode()
        body = json.dumps({"dataframe_records": [{"text": text}]}).encode()
        head = (
            f"POST /invocations HTTP/1.1\r\n{host}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    @property
    def row(self) -> str:
        """Of a table in Markdown."""
        times = sorted(self.times_s)
        p50, p99 = (1000 * times[int(len(times) * share)] for share in (0.5, 0.99))
        low, high = min(self.rates), max(self.rates)
        rate = f"**{median(self.rates):,.0f}** [{low:,.0f}, {high:,.0f}]"
        return f"| {self.name} | {rate} | {p50:,.0f} | {p99:,.0f} | {_memory_mb(self.process.pid):,.0f} |"


async def _user(server: Server, texts: Sequence[str], ends: float) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    times = []
    for text in texts:
        begins = time.perf_counter()
        if begins >= ends:
            break
        writer.write(server.request(text))
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        if status != 200:
            raise SystemExit(f"{server.name} answers {status}")
        times.append(time.perf_counter() - begins)
    writer.close()
    return times


async def _turn(server: Server, texts: Sequence[str], turn: int) -> None:
    begins = time.perf_counter()
    mine = [[f"{text} {turn}" for text in texts[user::USERS]] for user in range(USERS)]
    times = await asyncio.gather(*(_user(server, part, begins + TURN_S) for part in mine))
    took = time.perf_counter() - begins
    answered = [one for part in times for one in part]
    server.times_s += answered
    server.rates.append(len(answered) / took)


def measure(root: Path) -> tuple[list[str], list[float]]:
    """Starts the servers over a checkout's model, and measures them in turns.

    Returns:
        A table in Markdown, and of each turn: our rate with new texts, divided by MLflow's.
    """
    paths = load_params(root / "params.yaml").section(PathsConfig)
    items = pq.read_table(root / paths.index / "items.parquet", columns=["texts"])["texts"].to_pylist()
    words = [text.split() for texts in items for text in texts]
    pairs = sorted({" ".join(some[at : at + 2]) for some in words for at in range(len(some) - 1)})
    texts = [f"{pair} {number}" for number in range(1 + 20_000 // len(pairs)) for pair in pairs]
    with ExitStack() as stack:
        servers = []
        for name in ("mlflow models serve", "align serve", "align serve, texts remembered"):
            claim, port = free_port()
            stack.callback(claim.close)
            servers.append(Server(name, port, _start(root, name, port, paths)))
            stack.callback(servers[-1].process.kill)
        for server in servers:
            _wait(server)
        for turn in range(-1, TURNS):
            for server in servers:
                say(f"benchmark: turn {turn + 1} of {TURNS}, {server.name}")
                asyncio.run(_turn(server, texts, 0 if "remembered" in server.name else turn))
                if turn < 0:  # what is loaded at the first query
                    server.times_s.clear()
                    server.rates.clear()
        rows = [server.row for server in servers]
    theirs, ours = servers[:2]
    ratios = [mine / other for mine, other in zip(ours.rates, theirs.rates, strict=True)]
    return ["| server | queries / s | p50, ms | p99, ms | memory, MB |", "|---|--:|--:|--:|--:|", *rows], ratios


def _start(root: Path, name: str, port: int, paths: PathsConfig) -> subprocess.Popen[bytes]:
    where = ["--port", str(port)]
    if name.startswith("align"):
        command = [sys.executable, "-m", "align.cli", "serve", "--local", *where]
    else:
        model = ["--model-uri", str(paths.packaged), "--env-manager", "local", "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "models", "serve", *model, *where]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "MLFLOW_DISABLE_TELEMETRY": "true"}
    env["ALIGN_SERVER_NAMES"] = "benchmark"  # as behind a proxy: the users here have one address
    return subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait(server: Server) -> None:
    path = "/health?ready=true" if server.name.startswith("align") else "/ping"
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{server.name} did not start")


def _memory_mb(pid: int) -> float:
    """Resident memory of a server with its workers."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout whose model is served (default: this)")
    args = parser.parse_args()
    if not (args.root / "models/packaged/MLmodel").is_file():
        raise SystemExit(f"{args.root / 'models/packaged'}: no model here; run `make demo` first")
    load = os.getloadavg()[0]
    table, ratios = measure(args.root.resolve())
    said = f"Ratio of the first two: **{median(ratios):.1f}** [{min(ratios):.1f}, {max(ratios):.1f}]."
    about = conditions(f"wall-clock time, {USERS} connections", ("mlflow", "torch", "fastapi", "granian"), load)
    print(*table, "", said, "", about, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
