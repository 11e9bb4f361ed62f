"""The numbers of a stage's result, and the record of its run.

Reports and outs are the same bytes however a stage was started. What varies between runs (times, hosts) is written to
`runtime/<stage>.json`, on which nothing depends.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from align.durable.files import to_json, write_text


class Report(BaseModel):
    """The frozen result of a stage. Subclasses add fields; a number is computed once and then read from here.

    Attributes:
        metrics: by the flat names that DVC and MLflow show, such as `concepts/image_to_text/recall@10`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    metrics: dict[str, float | int]


def write_report(report: Report, directory: Path) -> None:
    """Writes `report.json` and, for DVC and MLflow, the metrics alone as `metrics.json`.

    Equal results are equal bytes. Raises ValueError on NaN.
    """
    write_text(directory / "metrics.json", to_json(report.metrics))
    write_text(directory / "report.json", to_json(report.model_dump(mode="json", exclude={"metrics"})))


def reported(folder: Path, file: str = "report.json") -> dict[str, Any]:
    """What a stage wrote into its folder of reports; empty if it is not there."""
    path = folder / file
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return found


@contextmanager
def record_runtime(stage: str, directory: Path) -> Iterator[dict[str, Any]]:
    """Writes `directory/<stage>.json` with times and host; the block may add figures to the dict.

    Raises:
        OSError: the directory cannot be made or written to; before the block, which may take hours, or after it.
    """
    import platform

    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        why = errno.EROFS if os.statvfs(directory).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(why, os.strerror(why), str(directory))
    record: dict[str, Any] = {"stage": stage, "host": platform.node(), "num_cpus": os.cpu_count()}
    start = time.monotonic()
    record["started_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        yield record
        record["outcome"] = "completed"
    except BaseException as error:
        record["outcome"] = f"failed: {type(error).__name__}"
        with suppress(OSError):  # of a disk that is full; the block's own error says more
            _write_runtime(directory / f"{stage}.json", record, start)
        raise
    _write_runtime(directory / f"{stage}.json", record, start)


def _write_runtime(path: Path, record: dict[str, Any], start: float) -> None:
    write_text(path, to_json(record | {"wall_s": round(time.monotonic() - start, 3)}))
