"""Pictures from a server on loopback to shards: `align ingest` against img2dataset, the same table, one process each.

Seconds are CPU seconds of the client unless a row says wall-clock. Start-up is not counted: the cost of a small table
is subtracted from the cost of the whole one. (Wall-clock time is too noisy for that: there the server measures.)
img2dataset has no robots.txt, no limit per host and no waits; ours are on, with the values of params.yaml.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import say
from benchmarks.data.download_server import (
    HOSTS,
    SHRUNK_PX,
    Served,
    hostile_urls,
    seconds_since_last_asked,
    serving,
)
from benchmarks.measure import Comparison, compare
from benchmarks.peers import build_peers, version_of
from benchmarks.world import World
from tests.support import ROOT

NUM_PICTURES = 3000
#: Whose cost is start-up.
NUM_FEW = 100
REPETITIONS = 3
#: Of the row with bad hosts; the same for both.
TIMEOUT_S, NUM_RETRIES, NUM_HOSTILE = 2, 2, 2000
_QUALITY = 95


@dataclass(frozen=True)
class Cost:
    """Of one run, its children included."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    num_good: int


def run(world: World) -> list[Comparison]:
    """The rows of the table."""
    python = build_peers()
    peer = f"img2dataset {version_of('img2dataset')}"
    with serving(NUM_PICTURES) as served:
        few, all_ = (
            _table(world.root / f"{count}.parquet", [f"http://127.0.0.1:{served.port}/{i}.jpg" for i in range(count)])
            for count in (NUM_FEW, served.num_pictures)
        )
        return [
            _cpu_row("download, raw bytes, downloader alone", peer, few, all_, _alone, _peer(python, _RAW)),
            _cpu_row("download, raw bytes, whole ingest", peer, few, all_, _ours([]), _peer(python, _RAW)),
            _cpu_row(
                "download, shrunk and re-encoded", peer, few, all_,
                _ours([f"download.resize_px={SHRUNK_PX}", f"download.jpeg_quality={_QUALITY}"]),
                _peer(python, _SHRINK),
            ),
            _hostile_row(world, peer, served, python),
        ]  # fmt: skip


_SHRINK = [
    f"--image_size={SHRUNK_PX}", "--resize_mode=keep_ratio", "--resize_only_if_bigger=True",
    f"--encode_quality={_QUALITY}", "--encode_format=jpg",
]  # fmt: skip
_RAW = ["--resize_mode=no", "--disable_all_reencoding=True"]


def _table(path: Path, urls: Sequence[str]) -> Path:
    pq.write_table(pa.table({"url": list(urls), "caption": [f"picture number {i}" for i in range(len(urls))]}), path)
    return path


def _cpu_row(
    what: str, peer: str, few: Path, all_: Path, ours: Callable[[Path], Cost], theirs: Callable[[Path], Cost]
) -> Comparison:
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    peaks: dict[str, int] = {}
    count = NUM_PICTURES - NUM_FEW
    for repetition in range(REPETITIONS):
        for name, client in (("ours", ours), ("theirs", theirs))[:: 1 if repetition % 2 else -1]:
            start_up, whole = client(few), client(all_)
            # Some few of the sample cannot be decoded, by neither.
            assert whole.num_good >= 0.99 * NUM_PICTURES, f"{what}, {name}: {whole}"
            spent[name].append(whole.cpu_s - start_up.cpu_s)
            peaks[name] = whole.peak_bytes
    per_thousand = {name: statistics.median(times) / count * 1000 for name, times in spent.items()}
    note = (
        f"{per_thousand['ours']:.3f} against {per_thousand['theirs']:.3f} CPU s per 1,000, "
        f"{per_thousand['ours'] / per_thousand['theirs']:.2f}x; memory {peaks['ours'] >> 20} and "
        f"{peaks['theirs'] >> 20} MiB of the largest process"
    )
    say(f"benchmark: {what}: {note}")
    return compare(
        what, peer, "pictures / CPU s", items=count, ours_s=spent["ours"], theirs_s=spent["theirs"], note=note
    )


def _hostile_row(world: World, peer: str, served: Served, python: Path) -> Comparison:
    urls = hostile_urls(served, NUM_HOSTILE)
    table = _table(world.root / "hostile.parquet", urls)
    ours = _ours([f"download.timeout_s={TIMEOUT_S}.0", f"download.num_retries={NUM_RETRIES}"])
    theirs = _peer(python, [*_RAW, f"--timeout={TIMEOUT_S}", f"--retries={NUM_RETRIES}"])
    bad = ("/slow/", "/broken/", "/gone/")
    good = sum(not any(kind in url for kind in bad) for url in urls)
    seen: dict[str, list[float]] = {"ours": [], "theirs": []}
    whole: dict[str, list[float]] = {"ours": [], "theirs": []}
    got: dict[str, int] = {}
    for repetition in range(REPETITIONS):
        for name, client in (("ours", ours), ("theirs", theirs))[:: 1 if repetition % 2 else -1]:
            seconds_since_last_asked(served)
            cost = client(table)
            seen[name].append(seconds_since_last_asked(served))
            whole[name].append(cost.wall_s)
            got[name] = min(cost.num_good, got.get(name, good))
    assert got["ours"] == good, f"{got['ours']} of {good}"
    ratios = {what: statistics.median(times["ours"]) / statistics.median(times["theirs"])
              for what, times in (("seen", seen), ("whole", whole))}  # fmt: skip
    note = (
        f"wall-clock, from the first connection to the last one's end as the server sees it: "
        f"{statistics.median(seen['ours']):.1f} against {statistics.median(seen['theirs']):.1f} s, "
        f"{ratios['seen']:.2f}x, our tar written after it and theirs within; three time-outs alone are "
        f"{TIMEOUT_S * (NUM_RETRIES + 1)} s; "
        f"whole commands: {ratios['whole']:.2f}x; {len(HOSTS)} hosts; pictures got: {got['ours']:,} and "
        f"{got['theirs']:,} of {good:,}"
    )
    say(f"benchmark: bad hosts: {note}")
    return compare(
        "download, 5 % slow, 5 % broken, 5 % 404, 2 % rate-limited hosts", peer, "addresses / s", items=NUM_HOSTILE,
        ours_s=seen["ours"], theirs_s=seen["theirs"], note=note,
    )  # fmt: skip


def _ours(overrides: Sequence[str]) -> Callable[[Path], Cost]:
    """`align ingest` of a table."""

    def client(table: Path) -> Cost:
        out = table.with_suffix(f".ours-{time.monotonic_ns()}")
        settings = [
            "ingest.source=url_table", f"paths.archive={table}", f"paths.raw={out / 'raw'}",
            f"paths.reports={out / 'reports'}", f"paths.runtime={out / 'runtime'}",
            f"paths.policy={ROOT / 'data/policy'}", "engine.num_workers=1", "engine.num_threads=1",
            "download.allow_networks=[127.0.0.0/8]", *overrides,
        ]  # fmt: skip
        words = [word for setting in settings for word in ("--set", setting)]
        cost = _measured([sys.executable, "-m", "align.cli", "ingest", "--params", str(ROOT / "params.yaml"), *words])
        return _with_good(cost, out / "raw")

    return client


def _alone(table: Path) -> Cost:
    """Our downloader, its results thrown away."""
    code = (
        "import sys; import pyarrow.parquet as pq\n"
        "from align.config.ingest import DownloadConfig; from align.config.params import load_params\n"
        "from align.ingest.download import Downloader\n"
        "config = load_params(None, ['download.allow_networks=[127.0.0.0/8]']).section(DownloadConfig)\n"
        "urls = pq.read_table(sys.argv[1])['url'].to_pylist()\n"
        "with Downloader(config) as downloader:\n"
        "    print(sum(fetched.data is not None for fetched in downloader.fetch(urls)))\n"
    )
    return _measured([sys.executable, "-c", code, str(table)], count=int)


def _peer(python: Path, options: Sequence[str]) -> Callable[[Path], Cost]:
    """img2dataset of a table."""

    def client(table: Path) -> Cost:
        out = table.with_suffix(f".theirs-{time.monotonic_ns()}")
        command = [
            str(python.with_name("img2dataset")), f"--url_list={table}", "--input_format=parquet",
            "--caption_col=caption", "--output_format=webdataset", f"--output_folder={out}", "--processes_count=1",
            "--thread_count=256", *options,
        ]  # fmt: skip
        return _with_good(_measured(command), out)

    return client


#: Runs a command and adds its CPU seconds and the peak KiB of its largest process. A process of its own does, since
#: peaks are handed down: what this one starts would have at least its own, with torch in it.
_METER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stderr=subprocess.STDOUT).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print("\\n", usage.ru_utime + usage.ru_stime, usage.ru_maxrss, end="")
sys.exit(code)
"""


def _measured(command: list[str], count: Callable[[str], int] | None = None) -> Cost:
    start = time.monotonic()
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", _METER, *command], cwd=ROOT, stdout=subprocess.PIPE, env=environment, check=False
    )  # fmt: skip
    output, _, usage = done.stdout.decode(errors="replace").rpartition("\n")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {output[-2000:]}")
    cpu_s, peak_kib = usage.split()
    return Cost(float(cpu_s), time.monotonic() - start, int(peak_kib) << 10, count(output) if count else 0)


def _with_good(cost: Cost, folder: Path) -> Cost:
    stats: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*_stats.json"))]
    return Cost(cost.cpu_s, cost.wall_s, cost.peak_bytes, sum(each["successes"] for each in stats))
