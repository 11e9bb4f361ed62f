"""Training on another machine, with stubs: clones that share git, DVC's remote and Prefect's server, and no folder."""

import shutil
import socket
from pathlib import Path

import pytest

from align.config.params import parse_yaml
from align.services.git import git
from tests.support import wait_until
from tests.support.local_stack import ENDS, PATIENCE_S, WORKS
from tests.support.remote_worker import Machine, share, use_remote

pytestmark = pytest.mark.shared_stack


@pytest.fixture(scope="module")
def other(stack, tmp_path_factory):
    """The other machine, whose worker is at work."""
    folder = tmp_path_factory.mktemp("other machine")
    share(stack.root, folder / "origin.git", folder / "dvc")
    env = stack.env | {"PREFECT_API_URL": stack.api, "PREFECT_API_AUTH_STRING": stack.login}
    machine = Machine(folder / "clone", Path(git(stack.root, "remote", "get-url", "origin")), env)
    use_remote(machine.root, folder / "dvc")
    machine.work("gpu")
    machine.wait_until_it_works()
    try:
        yield machine
    finally:
        machine.close()


def click(stack, name, seed, seconds=0, pool="gpu"):
    values = {"pretrain.weight_decay": float(PATIENCE_S + seconds), "pretrain.seed": seed}
    return stack.start({"name": name, "overrides": values | {"cluster.training_pool": pool}})


def parts(stack, name):
    """The flow runs of the pool's machine for a run, in the order of time."""
    question = {"flow_runs": {"name": {"any_": [f"training of {name} in gpu"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(stack.ask("/flow_runs/filter", question))


def lines(stack, *runs):
    """What flow runs logged."""
    question = {"logs": {"flow_run_id": {"any_": [run["id"] for run in runs]}}, "sort": "TIMESTAMP_ASC"}
    return [log["message"] for log in stack.ask("/logs/filter", question)] if runs else []


def works_there(stack, name):
    wait_until(lambda: WORKS in lines(stack, *parts(stack, name)), says=lambda: lines(stack, *parts(stack, name)))


def message(stack, run):
    return stack.ask(f"/flow_runs/{run}")["state"]["message"]


def test_data_here_training_there_equal_bytes_and_nothing_twice(stack, other):
    kept = {*other.root.glob(".align/worktrees/*")}  # those of failed runs
    run = click(stack, "far", seed=11, seconds=2)
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    [there] = parts(stack, "far")
    assert there["state_type"] == "COMPLETED" and there["parent_task_run_id"]
    said = lines(stack, there)
    assert WORKS in said and "step 3" in said and "working on ingest" not in said
    here = lines(stack, {"id": run}, *(part for part in stack.parts(run) if part["id"] != there["id"]))
    assert WORKS not in here and any("'ingest'" in line for line in here)
    assert "Stage 'pretrain' is cached - skipping run, checking out outputs" in here
    outs = parse_yaml(git(stack.root, "show", "run/far:dvc.lock"))["stages"]["pretrain"]["outs"]
    for md5 in (out["md5"] for out in outs):
        [one, two] = [root / ".dvc/cache/files/md5" / md5[:2] / md5[2:] for root in (stack.root, other.root)]
        assert one.read_bytes() == two.read_bytes()
    assert git(stack.root, "ls-remote", "origin", "refs/align/*") == ""
    assert {*other.root.glob(".align/worktrees/*")} <= kept
    # what was made before is not made again, though this machine has forgotten it
    shutil.rmtree(stack.root / ".dvc/cache/runs")
    run = click(stack, "far-later", seed=11, seconds=2)
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    assert len(parts(stack, "far-later")) == 1 and WORKS not in stack.logs(run)  # with those of the part


@pytest.mark.kill
def test_a_lost_machine_fails_the_run_and_its_retry_trains(stack, other):
    run = click(stack, "lost", seed=12, seconds=200)
    works_there(stack, "lost")
    other.lose()
    other.work("gpu")  # again: it says what it could not
    assert stack.wait_for(run, *ENDS) == "FAILED"
    [there] = parts(stack, "lost")
    assert there["state_type"] == "CRASHED"
    said = message(stack, run)
    assert "training in work pool 'gpu': its process ended without recording its end" in said and "\n" not in said
    assert str(there["id"]) in said and said.endswith("Retry of this run resumes at its checkpoint")
    (other.root / "checkpoints/enough-12").touch()  # the trainer may end
    retry = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    assert stack.ask(f"/flow_runs/{run}/set_state", {"state": retry})["status"] == "ACCEPT"
    wait_until(lambda: stack.ask(f"/flow_runs/{run}")["state_type"] == "COMPLETED", says=lambda: stack.logs(run))
    assert [each["state_type"] for each in parts(stack, "lost")] == ["CRASHED", "COMPLETED"]


@pytest.mark.kill
def test_cancelling_the_run_ends_the_training_there_with_its_checkpoint(stack, other):
    (other.root / "checkpoints/step").unlink(missing_ok=True)
    run = click(stack, "unwanted", seed=14, seconds=200)
    works_there(stack, "unwanted")
    stack.force(run, "CANCELLING")
    assert stack.wait_for(run, *ENDS) == "CANCELLED"
    wait_until(lambda: (other.root / "checkpoints/step").exists())  # by Prefect's own service, within half a minute
    [there] = parts(stack, "unwanted")
    assert stack.wait_for(there["id"], *ENDS) == "CANCELLED"


def test_training_that_fails_there_fails_the_run_with_its_reason(stack, other):
    run = click(stack, "broken", seed=15, seconds=-1)
    assert stack.wait_for(run, *ENDS) == "FAILED"
    [there] = parts(stack, "broken")
    assert there["state_type"] == "FAILED"
    said = message(stack, run)
    assert "the loss is not finite" in said and socket.gethostname() in said and str(there["id"]) in said


def test_a_pool_without_a_worker_is_refused_before_anything_runs(stack, other):
    run = click(stack, "refused", seed=16, pool="tpu")
    assert stack.wait_for(run, *ENDS) == "FAILED"
    assert "no worker was ever started for it: on its machine, make worker POOL=tpu" in message(stack, run)
    assert stack.states("refused") == {}
