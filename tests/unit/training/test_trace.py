"""A trace of steps: those that were asked for, wherever a run begins and ends, and no result is another."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from align.training.run import run
from align.training.trace import Trace
from tests.support import training_data
from tests.support.training_data import assert_same, plan, pretrain_config

CPU = torch.device("cpu")


def traced(folder: Path, *names: str) -> list[int]:
    """The numbers of the steps that the only trace below the folder has; it has events of these names, too."""
    (file,) = folder.rglob("trace/rank-0.json.gz")
    events: list[dict[str, Any]] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert set(names) <= {event["name"] for event in events}
    found = (re.fullmatch(r"step (\d+)", event["name"]) for event in events if event.get("ph") == "X")
    return sorted(int(name[1]) for name in found if name)


def test_a_step_is_traced_and_weights_are_the_same(tmp_path: Path) -> None:
    data, values = training_data.write(tmp_path / "data"), {"num_steps": 3, "validate_every_steps": 3}
    plain = run(plan(data, tmp_path / "plain", pretrain_config(**values)))
    assert not [*(tmp_path / "plain").rglob("trace")]
    assert_same(run(plan(data, tmp_path / "traced", pretrain_config(**values, trace_steps=[2, 2]))), plain)
    assert traced(tmp_path / "traced", "aten::convolution_backward", "[memory]") == [2]


@pytest.mark.parametrize(
    ("done", "found"), [(range(5), [2, 3]), (range(2, 5), [3]), (range(2), [2])], ids=["whole", "resumed", "ended"]
)
def test_steps_that_this_process_computes_are_traced(tmp_path: Path, done: range, found: list[int]) -> None:
    trace = Trace((2, 3), tmp_path, 0, CPU)
    for number in done:
        trace.at(number)
        torch.ones(2).sum()
    trace.end()
    assert traced(tmp_path, "aten::sum") == found


def test_on_cuda_the_history_of_its_memory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **how: calls.append(("record", how)))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda file: calls.append(("dump", Path(file).name)))
    trace = Trace((1, 1), tmp_path, 3, torch.device("cuda"))
    for done in range(3):
        trace.at(done)
    trace.end()
    assert calls == [("record", {}), ("dump", "rank-3.pickle"), ("record", {"enabled": None})]
    assert [file.name for file in tmp_path.rglob("rank-*")] == ["rank-3.json.gz"]


@pytest.mark.parametrize("steps", [[0, 3], [5, 4], [3]])
def test_steps_that_cannot_be_are_refused(steps: list[int]) -> None:
    with pytest.raises(ValidationError, match="trace_steps"):
        pretrain_config(trace_steps=steps)
