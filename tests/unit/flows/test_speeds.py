"""How long stages take, by what earlier runs of the checkout have measured."""

import json
import os
import time

import pytest

from flows.run.context import RunContext
from flows.speeds import expected_time, keep_speeds
from tests.support.params import PARAMS_FILE


@pytest.fixture
def root(tmp_path):
    """A checkout whose last run has measured three stages."""
    (tmp_path / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    (tmp_path / "runtime").mkdir()
    for name, outcome in (("filter", "completed"), ("index", "failed: DataError")):
        (tmp_path / f"runtime/{name}.json").write_text(json.dumps({"wall_s": 7200.0, "outcome": outcome}))
    (tmp_path / "runtime/ingest.json").write_text("{")
    return tmp_path


def test_what_a_run_has_completed_is_kept_for_the_next_plan(root):
    start = time.time() - 60
    run = RunContext(root=root, checkout=root, stale=frozenset({"filter", "index", "ingest", "never"}))
    assert expected_time(run, []) == "none: no stage is stale"
    assert expected_time(run, ["filter"]) == "unknown: none of these stages has been measured here"
    keep_speeds(run, start)
    assert [file.name for file in root.glob(".align/speeds/*")] == ["filter.json"]
    (root / ".align/speeds/index.json").write_text("cut o")
    assert (
        expected_time(run, ["index", "filter"]) == "about 2 h 0 min by the last measured speeds and unknown for index"
    )


def test_an_earlier_run_s_measure_is_not_this_one_s(root):
    start = time.time() - 60
    os.utime(root / "runtime/filter.json", (0, 0))
    keep_speeds(RunContext(root=root, checkout=root, stale=frozenset({"filter"})), start)
    assert not list(root.glob(".align/speeds/*"))
