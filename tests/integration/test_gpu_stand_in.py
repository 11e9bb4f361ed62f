"""`make bench-gpu` runs to its end on a machine without a card, so that nothing silly stops it on one that has one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import ROOT


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="it stands in for a card, and there is one")
def test_the_stand_in_runs_to_its_end(tmp_path: Path) -> None:
    page, out = ROOT / "benchmarks/gpu.md", tmp_path / "page.md"
    before = page.read_bytes() if page.exists() else None
    command = [sys.executable, "-m", "benchmarks.gpu", "--without-peers", "--output", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (page.read_bytes() if page.exists() else None) == before
    text = out.read_text("utf-8")
    assert text in done.stdout and "No card" in text and "nothing failed" in done.stderr + done.stdout
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Correctness", "B3 + Mini", "B7 + Base", "Beside open_clip", "Fed by the loader", "torch.compile"]
    assert "**failed**" not in text and "no time was left" not in text
    for check in ("LAMB against NumPy", "micro_batch: 16", "gradient_checkpointing: cheap", "killed (SIGKILL)"):
        line = next(line for line in text.splitlines() if line.startswith("|") and check in line)
        assert "| passed |" in line
    three, seven = "| tiny ones for B3 + Mini ", "| tiny ones for B7 + Base "
    rows = f"{three}| none | 16 |", f"{three}| cheap | 16 |", f"{seven}| none | 8 |", f"{three}| 8 | 6 |"
    for row in (*rows, f"{three}| 16 | on |"):
        assert row in text, row
    assert "open_clip is not installed here" in text
    assert "| towers | kernel | calls |" in text
