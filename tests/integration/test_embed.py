"""`align embed`, killed in the middle and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from tests.support import ROOT, tiny_model
from tests.support.params import PARAMS_FILE

NUM_LINES = 1500


def command(root: Path, out: Path) -> list[str]:
    overrides = [
        "embed.rows_per_part=50",
        f"paths.finetuned={root / 'model'}",
    ]
    return [
        sys.executable, "-m", "align.cli", "embed", str(root / "texts.txt"), "--out", str(out),
        "--params", str(PARAMS_FILE), *(word for override in overrides for word in ("--set", override)),
    ]  # fmt: skip


def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model.write(tmp_path)
    (tmp_path / "texts.txt").write_text("".join(f"the yellow sun and star {n}\n" for n in range(NUM_LINES)))
    out, parts = tmp_path / "killed.parquet", tmp_path / "killed.parquet.parts"

    process = subprocess.Popen(command(tmp_path, out), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("0*.parquet"))) < 3:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()

    assert main(command(tmp_path, out)[3:]) == 0
    said = capsys.readouterr().err
    assert f"embed: {NUM_LINES:,} rows (" in said
    assert "from an earlier run" in said
    assert not parts.exists()

    whole = tmp_path / "whole.parquet"
    assert main(command(tmp_path, whole)[3:]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert pq.read_metadata(out).num_rows == NUM_LINES
