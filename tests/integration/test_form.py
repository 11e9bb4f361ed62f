"""The form on a real server: what it refuses, what a run refuses at once, parts of the pipeline, and a run's page."""

import time
import urllib.error
from datetime import datetime
from typing import Any

import pytest

from tests.support.local_stack import PATIENCE_S, Stack

pytestmark = pytest.mark.timeout(600)


def artifacts(stack: Stack, run: str) -> dict[str, Any]:
    """Key -> newest artifact of the flow run itself."""
    found = stack.ask("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "CREATED_DESC"})
    found = [one for one in found if one["key"]]  # Prefect keeps a state's result as one without a key
    assert len({one["key"] for one in found}) == len(found), "an artifact was made twice, not updated"
    return {one["key"]: one for one in found}


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"overrides": {"promote.margin": "much"}}, "promote.margin"),
        ({"num_steps": 0}, "num_steps"),
        ({"to_stage": "pretain"}, "to_stage"),
    ],
)
def test_the_server_refuses_what_is_out_of_bounds(stack: Stack, request_: dict[str, Any], named: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        stack.start(request_)
    with error.value:
        assert error.value.code == 409 and named in error.value.read().decode()


def test_a_wrong_value_of_the_last_stage_costs_a_second(stack: Stack) -> None:
    """What the bounds of single values cannot tell: a metric that no stage measures."""
    run = stack.start({"name": "wrong", "overrides": {"promote.metrics": ["recall@10"]}})
    assert stack.wait_for(run, "FAILED", "COMPLETED", "CRASHED") == "FAILED"
    ended = stack.ask(f"/flow_runs/{run}")
    assert "promote.metrics: 'recall@10' is measured for no set" in ended["state"]["message"]
    started, end = (datetime.fromisoformat(ended[name]) for name in ("start_time", "end_time"))
    assert (end - started).total_seconds() < 3  # on a busy machine; the check takes a fifth of a second
    assert not list(stack.root.glob(".align/worktrees/*"))
    assert artifacts(stack, run) == {}


def test_the_page_of_a_run_shows_its_progress_and_where_to_look(stack: Stack) -> None:
    request = {"name": "page", "seed": 21, "overrides": {"pretrain.store_patience_s": PATIENCE_S + 25.0}}
    run = stack.start(request)
    deadline, shown = time.monotonic() + 120, {}
    while time.monotonic() < deadline and not (
        "| pretrain | **runs** |" in str(shown.get("run")) and "pretrain: step" in str(shown.get("progress"))
    ):
        time.sleep(1)
        shown = artifacts(stack, run)
    assert "stage 2 of 3, pretrain: step 1 of 4 (6 s left)" in shown["progress"]["description"]
    assert shown["progress"]["data"] == 25.0
    assert "working on pretrain" in shown["run"]["data"]
    assert f"* [MLflow]({stack.mlflow}/#/experiments/" in shown["run"]["data"]
    assert "| pretrain | **runs** |" in shown["plan"]["data"]
    assert stack.wait_for(run, "FAILED", "COMPLETED", "CRASHED") == "COMPLETED"
    shown = artifacts(stack, run)
    page = shown["run"]["data"]
    assert shown["progress"]["data"] == 100.0 and shown.keys() == {"plan", "progress", "run", "summary"}
    assert "* branch: run/page (" in page and "* registered: register" in page and "working on" not in page
    report = page.split("| pretrain | ran | [report](../artifact/")[1].partition(")")[0]
    assert "pretrain/value" in stack.ask(f"/artifacts/{report}")["data"]


@pytest.mark.full
def test_parts_of_the_pipeline(stack: Stack) -> None:
    done = stack.align_run("--name", "part", "--only", "data")
    assert done.returncode == 0, done.stderr
    assert stack.states("part").keys() == {"data-0", "ingest", "record"}  # the first is the sub-flow
    assert "Registered: nothing, since this run packages no model" in done.stdout
    refused = stack.align_run("--name", "late", "--from", "index", "--set", "pretrain.seed=99")
    assert refused.returncode == 1
    assert "pretrain must run before index: what they write is neither unchanged nor in DVC's cache" in refused.stderr
    assert stack.states("late") == {}
    assert stack.align_run("--name", "whole").returncode == 0
    plan = stack.run("-m", "align.cli", "plan", "--to", "pretrain", "--set", "pretrain.seed=99")
    assert plan.returncode == 0 and "pretrain.seed 1 -> 99" in plan.stdout, plan.stderr
    assert not list(stack.root.glob(".align/worktrees/*"))
