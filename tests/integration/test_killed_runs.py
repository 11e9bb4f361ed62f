"""Runs that are killed without a word, on a real Prefect server: their end is true everywhere, and nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.support import wait_until
from tests.support.killing import kill_family
from tests.support.local_stack import Stack, stub_repository

pytestmark = pytest.mark.shared_stack

UNFINISHED = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]


@contextmanager
def started(stack, name, *words):
    """`align run`, whose training takes ten minutes; killed at the end, if it lives."""
    command = [sys.executable, "-m", "align.cli", "run", "--name", name, "--set", "pretrain.weight_decay=900.0"]
    with subprocess.Popen([*command, *words], cwd=stack.root, env=stack.env, stderr=subprocess.PIPE, text=True) as run:
        try:
            yield run
        finally:
            kill_family(run.pid)


def said(run, words):
    """Waits until the run has said something."""
    for line in run.stderr:
        if words in line:
            return
    pytest.fail(f"the run ended without: {words}")


def repair(stack):
    done = stack.align("runs", "--repair")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stderr.splitlines()


def runs_of(stack, name):
    """The newest flow run of this name, and its sub-flows."""
    query = {"sort": "EXPECTED_START_TIME_DESC", "flow_runs": {"name": {"any_": [name]}}, "limit": 1}
    [run] = stack.ask("/flow_runs/filter", query)
    below = stack.ask("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}})
    return [run, *below]


def kinds(stack, name):
    """The kinds of states of a run with its sub-flows, and of their tasks."""
    runs = runs_of(stack, name)
    tasks = stack.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}})
    return [run["state_type"] for run in runs], [task["state_type"] for task in tasks]


def mlflow_status(stack, name):
    [run] = stack.mlflow_runs(f"attributes.run_name = '{name}'")
    return str(run["info"]["status"])


def nothing_is_left(stack):
    assert list((stack.root / ".align/runs").glob("*")) == []


@pytest.mark.kill
def test_a_killed_run_is_given_its_end(stack):
    with started(stack, "killed") as run:
        said(run, "working on pretrain")
        assert repair(stack) == ["no killed run is left to repair"]  # a live one is not touched
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    states, tasks = kinds(stack, "killed")
    assert states[0] == "RUNNING" and "RUNNING" in tasks and mlflow_status(stack, "killed") == "RUNNING"
    with started(stack, "other", "--set", "pretrain.seed=2") as other:
        said(other, "working on pretrain")
        # the start of any run repairs what is dead
        states, tasks = kinds(stack, "killed")
        assert states[0] == "CRASHED" and not set(UNFINISHED) & {*states, *tasks}, (states, tasks)
        assert mlflow_status(stack, "killed") == "KILLED"
        assert kinds(stack, "other")[0][0] == "RUNNING" and mlflow_status(stack, "other") == "RUNNING"
        os.kill(other.pid, signal.SIGSTOP)  # and a cancel that nobody is left to obey
        stack.force(runs_of(stack, "other")[0]["id"], "CANCELLING")
        assert repair(stack) == ["no killed run is left to repair"]  # stopped is not dead
        kill_family(other.pid)
        other.wait()
    assert any("run 'other' was killed: in Prefect flow run other is Cancelled" in line for line in repair(stack))
    states, tasks = kinds(stack, "other")
    assert states[0] == "CANCELLED" and not set(UNFINISHED) & {*states, *tasks}
    assert mlflow_status(stack, "other") == "KILLED"
    assert repair(stack) == ["no killed run is left to repair"]
    nothing_is_left(stack)


@pytest.fixture
def slow_promotion(stack):
    """`align promote` takes ten minutes."""
    program = stack.root / "bin/align"
    text = program.read_text()
    slow = 'verb = sys.argv[1]\nif verb == "promote":\n    print("works", flush=True)\n    time.sleep(600)\n'
    program.write_text(text.replace("verb = sys.argv[1]\n", slow))
    yield
    program.write_text(text)


def test_a_killed_promotion_is_given_its_end(stack, slow_promotion):
    run = stack.click("promote", name="by hand")
    stack.wait_for_line(run, "works")
    assert repair(stack) == ["no killed run is left to repair"]
    listed = stack.run("-m", "align.cli", "runs", "--json")
    assert "by hand" not in [each["name"] for each in json.loads(listed.stdout)["runs"]]  # it makes no model
    process = stack.flow_process(run)
    worker = psutil.Process(json.loads((stack.root / ".align/services.json").read_text())["worker"]["pid"])
    worker.suspend()  # it would say so itself
    wait_until(lambda: worker.status() == psutil.STATUS_STOPPED)  # until then it takes the dead process's exit code
    try:
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert kinds(stack, "by hand") == (["RUNNING"], ["RUNNING"])
        [line] = repair(stack)
    finally:
        worker.resume()
    ended = "in Prefect flow run by hand is Crashed, 0 sub-flows and 1 tasks are Crashed"
    assert line == f"flow promote was killed: {ended}"
    assert kinds(stack, "by hand") == (["CRASHED"], ["CRASHED"])
    nothing_is_left(stack)


def stopped_by_make_down(stack):
    """A click, and `make down` in the middle of it; `make up` says what became of it."""
    run = stack.start({"name": "clicked", "overrides": {"pretrain.weight_decay": 900.0}})
    wait_until(lambda: stack.states("clicked").get("pretrain") == "Running", pause_s=1)
    assert stack.run("-m", "infra.local", "down").returncode == 0
    done = stack.run("-m", "infra.local", "up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.wait_for(run, "CRASHED", "CANCELLED", timeout_s=60) in ("CRASHED", "CANCELLED"), done.stderr
    states, tasks = kinds(stack, "clicked")
    assert not set(UNFINISHED) & {*states, *tasks}, (states, tasks)
    assert mlflow_status(stack, "clicked") == "KILLED"
    nothing_is_left(stack)


@pytest.mark.kill
def test_after_everything_was_killed_make_up_repairs(tmp_path):
    """A run with a server of its own; the power fails; `make up`."""
    root = tmp_path / "repo"
    stub_repository(root)
    alone = Stack(root)
    try:
        with started(alone, "alone") as run:
            said(run, "working on pretrain")
            kill_family(run.pid)
            run.wait()
        time.sleep(1)
        done = alone.run("-m", "infra.local", "up")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "run 'alone' was killed: in Prefect flow run alone is Crashed" in done.stderr
        states, tasks = kinds(alone, "alone")
        assert states[0] == "CRASHED" and not set(UNFINISHED) & {*states, *tasks}, (states, tasks)
        assert mlflow_status(alone, "alone") == "KILLED"
        nothing_is_left(alone)
        stopped_by_make_down(alone)
    finally:
        alone.run("-m", "infra.local", "down")
        alone.close()
