"""What becomes of a deployed run when something around it, or below it, dies. The stated ends: docs/operations.md."""

import time

import psutil
import pytest

from align.local_stack import running_services
from align.services.git import git
from tests.support import wait_until
from tests.support.killing import lives
from tests.support.local_stack import BUSY_S, ENDS, PATIENCE_S, SERVICES, WORKS, started
from tests.support.mlflow_server import serve as serve_mlflow

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module", name="stack")
def _stack(tmp_path_factory):
    """One of its own, whose services it ends."""
    with started(tmp_path_factory.mktemp("survival") / "repo") as stack:
        yield stack


@pytest.fixture(name="whole")
def _whole(stack):
    """The stack with all its services, whatever the last test ended."""
    (stack.root / "checkpoints/step").unlink(missing_ok=True)
    if len(running_services(stack.root)) < len(SERVICES):
        stack.up()
    return stack


def click(stack, name, seed):
    """A run whose trainer works until `finish`, or for five minutes."""
    return stack.start({"name": name, "seed": seed, "overrides": {"pretrain.weight_decay": PATIENCE_S + 300.0}})


def training(stack, name, seed):
    """The same, once its trainer works."""
    run = click(stack, name, seed)
    stack.wait_for_line(run, WORKS)
    return run


def finish(stack, seed):
    """Lets the trainer of this seed end after the step that it is in."""
    (stack.root / f"checkpoints/enough-{seed}").touch()


def has_every_step(stack, run, seed):
    """Whether the log has each step of the trainer once, in order."""
    done = int((stack.root / f"checkpoints/steps-{seed}").read_text())
    return [line for line in stack.logs(run) if line.startswith("step ")] == [f"step {each}" for each in range(done)]


def goes_through(stack, run, seed):
    """Lets the trainer end; the run is complete, and so is its log."""
    finish(stack, seed)
    assert stack.wait_for(run, *ENDS) == "COMPLETED"
    wait_until(lambda: has_every_step(stack, run, seed))  # its last lines may come after its end


def trainer(stack, run):
    """The process of the stage itself, below dvc."""
    for process in stack.flow_process(run).children(recursive=True):
        if process.cmdline()[1:3] == [str(stack.root / "bin/align"), "pretrain"]:
            return process
    raise AssertionError("no trainer")


def saved(stack):
    return (stack.root / "checkpoints/step").exists()


def works(stack, name, seed):
    """A click on a run works."""
    run = stack.start({"name": name, "overrides": {"pretrain.seed": seed}})
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)


@pytest.mark.parametrize("ends_meanwhile", [False, True])
def test_the_server_restarts_in_mid_run(whole, ends_meanwhile):
    """Its stage ends with the server there again, or while it is gone: the run goes through, and no line is lost."""
    seed = 101 + ends_meanwhile
    run = training(whole, f"restart-{seed}", seed)
    process = trainer(whole, run)
    whole.kill("prefect")
    if ends_meanwhile:
        finish(whole, seed)
        wait_until(lambda: not lives(process))
    time.sleep(10)  # what the run reports fails, more than once
    whole.up()
    goes_through(whole, run, seed)
    states = whole.states(f"restart-{seed}")
    assert {states[stage] for stage in ("pretrain", "index", "record", "register")} == {"Completed"}
    assert all(part["state_type"] == "COMPLETED" for part in whole.parts(run))
    works(whole, f"after-{seed}", 100 + seed)


def test_the_server_is_unavailable_for_two_minutes(whole):
    run = training(whole, "long-outage", 103)
    whole.kill("prefect")
    time.sleep(120)
    whole.up()
    goes_through(whole, run, 103)
    works(whole, "long-outage-after", 203)


def test_a_run_outlives_its_worker(whole):
    run = training(whole, "no-worker", 104)
    whole.kill("worker")
    log = whole.root / ".align/logs/runs.log"
    since = log.stat().st_size
    wait_until(lambda: log.read_bytes()[since:].count(b"step ") >= 3)  # where people look for what it prints
    goes_through(whole, run, 104)
    whole.up()
    works(whole, "next-worker", 204)


def test_make_down_twice_in_mid_run_blocks_nothing(whole):
    """Also where an earlier version has left the deployment a limit, whose slots a dead run keeps."""
    deployment = whole.ask("/deployments/name/pipeline/train-and-release")["id"]
    whole.ask(f"/deployments/{deployment}", {"concurrency_limit": 2}, "PATCH")
    for number in range(2):
        (whole.root / "checkpoints/step").unlink(missing_ok=True)
        training(whole, f"down-{number}", 106 + number)
        if number:  # of which nobody is left to tell it
            whole.kill("worker")
        said = whole.down()
        assert saved(whole)
        assert ("stopped a run that had outlived its worker" in said) is bool(number)
        whole.up()
        assert whole.ask("/deployments/name/pipeline/train-and-release")["global_concurrency_limit"] is None
    works(whole, "after-down", 206)


@pytest.mark.parametrize("victim", ["flow", "dvc", "trainer"])
def test_a_killed_process_leaves_nothing_behind(whole, victim):
    run = training(whole, f"killed-{victim}", 108)
    family = whole.flow_process(run).children(recursive=True)
    assert [one for one in family if "dvc" in " ".join(one.cmdline())]
    if victim == "flow":
        whole.flow_process(run).kill()
    elif victim == "dvc":
        next(one for one in family if one.cmdline()[1].endswith("/dvc")).kill()
    else:
        trainer(whole, run).kill()
    assert whole.wait_for(run, *ENDS) == ("CRASHED" if victim == "flow" else "FAILED")
    psutil.wait_procs(family, BUSY_S)
    assert not [*filter(lives, family)]
    assert saved(whole) is (victim != "trainer")
    if victim != "flow":
        message = whole.ask(f"/flow_runs/{run}")["state"]["message"]
        assert ("ended by SIGKILL" if victim == "dvc" else "failed to reproduce") in message
    works(whole, f"killed-{victim}-again", 108)


def test_two_equal_runs_and_a_different_one_at_once(whole):
    first = training(whole, "first", 110)
    second = click(whole, "second", 110)
    whole.wait_for_line(second, "waiting for run 'first'")
    finish(whole, 110)
    assert whole.wait_for(first, *ENDS) == whole.wait_for(second, *ENDS) == "COMPLETED"
    assert whole.states("second")["pretrain"] == "Cached"

    one, other = training(whole, "one", 111), training(whole, "other", 112)  # there is no accelerator here
    finish(whole, 112)
    assert whole.wait_for(other, *ENDS) == "COMPLETED"
    assert whole.ask(f"/flow_runs/{one}")["state_type"] == "RUNNING"
    finish(whole, 111)
    assert whole.wait_for(one, *ENDS) == "COMPLETED"


def test_mlflow_is_killed_in_mid_run(whole):
    """Runs of the local stack write to MLflow's database themselves; its server is what people look at."""
    run = training(whole, "no-mlflow", 113)
    whole.kill("mlflow")
    finish(whole, 113)
    assert whole.wait_for(run, *ENDS) == "COMPLETED"
    git(whole.root, "rev-parse", "--verify", "run/no-mlflow")


def test_an_mlflow_server_elsewhere_is_killed_in_mid_run(whole, tmp_path):
    """The branch is recorded; what MLflow cannot be told fails the run in one line, and is repaired later."""
    with serve_mlflow(tmp_path / "mlflow") as server, pytest.MonkeyPatch.context() as patch:
        patch.setitem(whole.env, "MLFLOW_TRACKING_URI", server.uri)
        whole.kill("worker")
        whole.up()
        try:
            run = training(whole, "elsewhere", 114)
            server.kill()
            finish(whole, 114)
            assert whole.wait_for(run, *ENDS) == "FAILED"
            message = whole.ask(f"/flow_runs/{run}")["state"]["message"]
            assert f"MLflow at {server.uri}" in message and "\n" not in message
            assert has_every_step(whole, run, 114)
            git(whole.root, "rev-parse", "--verify", "run/elsewhere")
            server.start()
            done = whole.run("-m", "align.cli", "runs", "--repair")
            assert done.returncode == 0 and "in MLflow its run is KILLED" in done.stderr, done.stderr
        finally:
            whole.kill("worker")  # which has its address
