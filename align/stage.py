"""What every stage shares: outputs that appear complete or not at all, a report, progress, and a runtime record.

Reports and outs are the same bytes however a stage was started; what varies from run to run (times, hosts) goes to
`runtime/<stage>.json`, which nothing depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")

#: Seconds between two progress lines where the output is no terminal (a log, a flow run).
PROGRESS_INTERVAL_S = 5.0


class Report(BaseModel):
    """The frozen result of a stage. Subclasses add fields; a number is computed once and read from here.

    Attributes:
        metrics: flat names as DVC and MLflow show them, such as `concepts/image_to_text/recall@10`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    metrics: dict[str, float | int]


def write_report(report: Report, directory: Path) -> None:
    """Writes `report.json` and, for DVC and MLflow, its metrics alone as `metrics.json`.

    Sorted keys, two spaces, NaN refused: equal results are equal bytes.
    """
    write_text(directory / "metrics.json", to_json(report.metrics))
    write_text(directory / "report.json", to_json(report.model_dump(mode="json", exclude={"metrics"})))


def to_json(value: Any) -> str:
    """Deterministic JSON text (sorted keys, UTF-8 kept, trailing newline). Raises ValueError on NaN or infinity."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: beside, fsync, os.replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place when the block ends well, and vanishes when it fails.

    A folder left by a killed run is removed by the next one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                fsync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        fsync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    """Flushes a file (or a folder's entries) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex sha256 over the names and sha256s of a folder's files, in order of their names; byte code is left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__":
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def track(items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows progress on stderr: a bar on a terminal, a line every few seconds in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, unit="", leave=False)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL_S:
            last = now
            of = f" of {total:,}" if total else ""
            say(f"{what}: {count:,}{of}, {count / (now - start):,.0f}/s")


def say(message: str) -> None:
    """One line for the person who watches. stdout stays free for results."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def record_runtime(stage: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Writes `directory/<stage>.json` with the times and the host; the block may add throughput figures to the dict."""
    import platform

    record: dict[str, Any] = {"stage": stage, "host": platform.node(), "num_cpus": os.cpu_count()}
    start = time.time()
    record["started_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start))
    try:
        yield record
        record["outcome"] = "completed"
    except BaseException as error:
        record["outcome"] = f"failed: {type(error).__name__}"
        raise
    finally:
        record["wall_s"] = round(time.time() - start, 3)
        write_text(directory / f"{stage}.json", to_json(record))
