"""Hosts that refuse each connection, as many of an old crawl do: the cost of one must not grow with their number."""

from __future__ import annotations

import socket

from align.config.ingest import DownloadConfig
from align.config.params import load_params
from align.ingest.download import Downloader
from benchmarks.measure import Comparison, compare, in_process
from benchmarks.world import World
from tests.support import ROOT

FEW, MANY = 5_000, 40_000
REPETITIONS = 3


def run(world: World) -> list[Comparison]:
    """The row of the table."""
    del world
    spent: dict[int, list[float]] = {FEW: [], MANY: []}
    peaks: dict[int, int] = {}
    with socket.socket() as bound:  # a port on which nothing listens
        bound.bind(("0.0.0.0", 0))
        port = bound.getsockname()[1]
        for repetition in range(REPETITIONS):
            for count in (FEW, MANY)[:: 1 if repetition % 2 else -1]:
                cpu_s, peaks[count] = in_process(_ask, port, count)
                spent[count].append(cpu_s)
    note = (
        f"one address a host, robots.txt asked for three times each; above 1: cheaper the more there are; memory "
        f"{peaks[MANY] >> 20} and {peaks[FEW] >> 20} MiB"
    )
    return [
        compare(
            f"download, {MANY:,} dead hosts", f"{FEW:,} dead hosts", "addresses / CPU s", items=MANY,
            ours_s=spent[MANY], theirs_s=[cpu_s * MANY / FEW for cpu_s in spent[FEW]], note=note,
        )
    ]  # fmt: skip


def _ask(port: int, count: int) -> None:
    section = load_params(ROOT / "params.yaml").section(DownloadConfig)
    config = section.model_copy(update={"allow_networks": ("127.0.0.0/8",), "backoff_s": 0.05})
    urls = (f"http://127.{1 + i // 62_500}.{i // 250 % 250}.{1 + i % 250}:{port}/x.jpg" for i in range(count))
    with Downloader(config) as downloader:
        assert {fetched.error for fetched in downloader.fetch(urls)} == {"connection refused"}
