"""A stage on another machine, with stubs: clones that share git, DVC's remote and Prefect's server, and no folder."""

import shutil
import socket
from pathlib import Path
from urllib.error import HTTPError

import pytest

from align.services.git import git
from tests.support import wait_until
from tests.support.local_stack import ENDS, PATIENCE_S, WORKS
from tests.support.remote_worker import Machine, share, use_remote

pytestmark = pytest.mark.shared_stack

#: The pool's machine trains; a machine that is silent for so long is lost. A busy one takes half of it to start a flow.
ELSEWHERE = {"cluster.pools": {"pretrain": "gpu"}, "cluster.patience_s": 45}


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    return tmp_path_factory.mktemp("remote") / "dvc"


@pytest.fixture(scope="module")
def other(stack, remote, tmp_path_factory):
    """The other machine, whose worker is at work."""
    folder = tmp_path_factory.mktemp("other machine")
    share(stack.root, folder / "origin.git", remote)
    machine = new_machine(stack, folder / "clone", remote)
    try:
        yield machine
    finally:
        machine.close()


def new_machine(stack, root, remote):
    env = stack.env | {"PREFECT_API_URL": stack.api, "PREFECT_API_AUTH_STRING": stack.login}
    machine = Machine(root, Path(git(stack.root, "remote", "get-url", "origin")), env)
    use_remote(root, remote)
    machine.work("gpu")
    machine.wait_until_it_works()
    return machine


def click(stack, name, seed, seconds=0, **more):
    values = {"pretrain.weight_decay": float(PATIENCE_S + seconds), "pretrain.seed": seed}
    return stack.start({"name": name, "overrides": ELSEWHERE | values | more})


def sent(stack, name):
    """The flow runs of the pool's machines for a run, in the order of time."""
    question = {"flow_runs": {"name": {"any_": [f"pretrain of {name}"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(stack.ask("/flow_runs/filter", question))


@pytest.fixture(scope="module")
def far(stack, other):
    """A run that trained on the other machine."""
    run = click(stack, "far", seed=11, seconds=3)
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    return run


def test_a_stage_runs_on_another_machine(stack, other, far):
    [there] = sent(stack, "far")
    assert there["state_name"] == "Completed"
    said = lines(stack, there)
    assert WORKS in said
    assert "step 5" in said
    here = stack.logs(far)
    assert "pretrain: runs in work pool 'gpu'" in here
    assert not any(line.startswith("Running stage 'pretrain'") for line in here)
    assert "Stage 'pretrain' is cached - skipping run, checking out outputs" in here
    table = git(stack.root, "show", "run/far:dvc.lock")
    assert "models/pretrained" in table
    assert stack.states("far")["pretrain"] == "Completed"
    assert git(stack.root, "ls-remote", "origin", "refs/align/*") == ""
    assert not list((other.root / ".align/worktrees").iterdir())
    summary = stack.ask("/artifacts/filter", {"artifacts": {"key": {"any_": ["plan"]}}, "sort": "CREATED_DESC"})
    assert "pretrain in work pool gpu" in summary[0]["data"]


def test_the_same_again_sends_nothing(stack, other, far):
    """The result is not in this machine's cache any more, but in DVC's remote."""
    shutil.rmtree(stack.root / ".dvc/cache/runs")
    run = click(stack, "far-later", seed=11, seconds=3)
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    assert sent(stack, "far-later") == []
    assert stack.states("far-later")["pretrain"] == "Cached"


@pytest.mark.kill
def test_another_machine_takes_over_from_one_that_is_lost(stack, other, remote, tmp_path):
    run = click(stack, "lost", seed=12, seconds=25)
    wait_until(lambda: WORKS in lines(stack, *sent(stack, "lost")))
    other.lose()
    third = new_machine(stack, tmp_path / "third", remote)
    try:
        assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    finally:
        third.close()
        other.work("gpu")
        other.wait_until_it_works()
    first, second = sent(stack, "lost")
    assert first["state_type"] == "CRASHED"
    assert second["state_name"] == "Completed"
    gone = "its worker was not heard of for 45 s (cluster.patience_s)"
    assert f"pretrain: {gone}; another worker takes over" in stack.logs(run)
    # what the lost machine left is cleared by its next stage
    assert list((other.root / ".align/worktrees").iterdir())
    run = click(stack, "after-the-loss", seed=13)
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    assert not list((other.root / ".align/worktrees").iterdir())


@pytest.mark.kill
def test_cancelling_the_run_ends_the_stage_there_with_its_checkpoint(stack, other):
    (other.root / "checkpoints/step").unlink(missing_ok=True)
    run = click(stack, "unwanted", seed=14, seconds=200)
    wait_until(lambda: WORKS in lines(stack, *sent(stack, "unwanted")))
    stack.force(run, "CANCELLING")
    assert stack.wait_for(run, *ENDS) == "CANCELLED"
    wait_until(lambda: (other.root / "checkpoints/step").exists())
    [there] = sent(stack, "unwanted")
    assert stack.wait_for(there["id"], *ENDS) == "CANCELLED"
    assert git(stack.root, "ls-remote", "origin", "refs/align/*") == ""


@pytest.mark.kill
def test_suspending_the_run_ends_the_stage_there_and_resuming_sends_it_again(stack, other):
    (other.root / "checkpoints/step").unlink(missing_ok=True)
    run = click(stack, "later", seed=18, seconds=20)
    wait_until(lambda: WORKS in lines(stack, *sent(stack, "later")))
    state = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    assert stack.ask(f"/flow_runs/{run}/set_state", {"state": state})["status"] == "ACCEPT"
    wait_until(lambda: (other.root / "checkpoints/step").exists())
    wait_until(lambda: stack.ask(f"/flow_runs/{run}")["state_name"] == "Suspended")
    [there] = sent(stack, "later")
    assert stack.wait_for(there["id"], *ENDS) == "CANCELLED"
    # at once: the run here may not have seen yet that its stage has ended
    wait_until(lambda: stack.ask(f"/flow_runs/{run}/resume", {})["status"] == "ACCEPT")
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    assert [each["state_name"] for each in sent(stack, "later")] == ["Cancelled", "Completed"]


@pytest.mark.cluster
def test_a_stage_that_fails_there_fails_the_run_with_its_reason(stack, other):
    run = click(stack, "broken", seed=15, seconds=-1)
    assert stack.wait_for(run, *ENDS) == "FAILED"
    [there] = sent(stack, "broken")
    assert there["state_type"] == "FAILED"
    state = stack.ask(f"/flow_runs/{run}")["state"]["message"]
    assert "the loss is not finite" in state
    assert socket.gethostname() in state
    assert str(there["id"]) in state


@pytest.mark.cluster
def test_what_cannot_work_is_refused_first(stack, other):
    run = stack.start({"name": "refused", "overrides": {"pretrain.seed": 16, "cluster.pools": {"pretrain": "tpu"}}})
    assert stack.wait_for(run, *ENDS) == "FAILED"
    assert "no worker was ever started for pool 'tpu'" in stack.ask(f"/flow_runs/{run}")["state"]["message"]
    assert not any("pretrain" in name for name in stack.states("refused"))


def test_a_name_that_is_no_pool_is_refused_by_the_server(stack, other):
    with pytest.raises(HTTPError) as error:
        stack.start({"name": "refused", "overrides": {"cluster.pools": {"pretrain": "gpu; rm"}}})
    assert "gpu; rm" in error.value.read().decode()


@pytest.mark.cluster
def test_remotes_that_no_other_machine_sees_are_refused_first(stack, other, remote):
    origin = git(stack.root, "remote", "get-url", "origin")
    try:
        use_remote(stack.root, "../.align/remote")
        git(stack.root, "remote", "set-url", "origin", "/nowhere/at/all.git")
        done = stack.run(
            "-m", "align.cli", "plan", "--set", "cluster.pools={pretrain: gpu}", "--set", "pretrain.seed=17"
        )
    finally:
        git(stack.root, "remote", "set-url", "origin", origin)
        use_remote(stack.root, remote)
    assert done.returncode == 0, done.stderr  # the plan says it
    said = done.stdout
    assert "cannot work: DVC's remote 'shared' is a folder of this checkout, which no other machine sees" in said
    assert "cannot work: cluster.pools: other machines get the code from git's remote 'origin'" in said
    assert "elsewhere" in said
    assert "pretrain in work pool gpu" in said


def lines(stack, *runs):
    """What flow runs logged."""
    question = {"logs": {"flow_run_id": {"any_": [run["id"] for run in runs]}}, "sort": "TIMESTAMP_ASC"}
    return [log["message"] for log in stack.ask("/logs/filter", question)] if runs else []
