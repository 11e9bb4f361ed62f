"""Pictures from a server on loopback to shards: `align ingest` against img2dataset, the same table, one process each.

Seconds are CPU seconds of the client. Start-up is not counted: the cost of a small table is subtracted from the cost of
the whole one. img2dataset has no robots.txt, no limit per host and no waits; ours are on, with the values of
params.yaml.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.display.console import say
from align.pairs.picture import PictureError, read_header
from benchmarks.measure import Comparison, compare
from benchmarks.world import World
from tests.support import ROOT
from tests.support.peers import build_peers, version_of
from tests.support.web_server import WebServer, response

NUM_PICTURES = 3000
#: Whose cost is start-up.
NUM_FEW = 100
REPETITIONS = 3
#: Short sides, so that each picture is shrunk in the row that shrinks.
SHRUNK_PX = 128
_QUALITY = 95


@dataclass(frozen=True)
class Cost:
    """Of one run, its children included."""

    cpu_s: float
    peak_bytes: int
    num_good: int


def run(world: World) -> list[Comparison]:
    """The rows of the table."""
    python = build_peers()
    peer = f"img2dataset {version_of('img2dataset')}"
    with serving(NUM_PICTURES) as port:
        few, all_ = (
            _table(world.root / f"{count}.parquet", [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(count)])
            for count in (NUM_FEW, NUM_PICTURES)
        )
        return [
            _cpu_row("download, raw bytes, whole ingest", peer, few, all_, _ours([]), _peer(python, _RAW)),
            _cpu_row(
                "download, shrunk and re-encoded", peer, few, all_,
                _ours([f"download.resize_px={SHRUNK_PX}", f"download.jpeg_quality={_QUALITY}"]),
                _peer(python, _SHRINK),
            ),
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
        command = [sys.executable, "-m", "align.cli", "ingest", "--params", str(ROOT / "params.yaml"), *words]
        return _measured(command, out / "raw")

    return client


def _peer(python: Path, options: Sequence[str]) -> Callable[[Path], Cost]:
    """img2dataset of a table."""

    def client(table: Path) -> Cost:
        out = table.with_suffix(f".theirs-{time.monotonic_ns()}")
        command = [
            str(python.with_name("img2dataset")), f"--url_list={table}", "--input_format=parquet",
            "--caption_col=caption", "--output_format=webdataset", f"--output_folder={out}", "--processes_count=1",
            "--thread_count=256", *options,
        ]  # fmt: skip
        return _measured(command, out)

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


def _measured(command: list[str], folder: Path) -> Cost:
    """What a command costs that leaves img2dataset's `_stats.json` in a folder."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", _METER, *command], cwd=ROOT, stdout=subprocess.PIPE, env=environment, check=False
    )  # fmt: skip
    output, _, usage = done.stdout.decode(errors="replace").rpartition("\n")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {output[-2000:]}")
    cpu_s, peak_kib = usage.split()
    stats: list[dict[str, Any]] = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*_stats.json"))]
    return Cost(float(cpu_s), int(peak_kib) << 10, sum(each["successes"] for each in stats))


def _pictures() -> Iterator[bytes]:
    """Those of the sample, larger than `SHRUNK_PX`."""
    with (ROOT / "data/sample/archive.warc.gz").open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            if (record.http_content_type or "").startswith("image/"):
                data = record.reader.read()
                try:
                    header = read_header(data)
                except PictureError:
                    continue
                if min(header.width_px, header.height_px) > SHRUNK_PX:
                    yield data


@contextmanager
def serving(count: int) -> Iterator[int]:
    """The server of so many pictures, until the block is left; its port."""
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
    server = WebServer(["127.0.0.1"], records=False)
    for i, data in enumerate(islice(_pictures(), count)):
        server.routes[f"/{i}.jpg"] = response(data)
    server.serve(lambda: sender.send(server.port))
