"""The flows on a real Prefect server, a real worker and real DVC, over three stub stages in a repository."""

import base64
import json
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

import pytest

from align.services.git import git
from tests.support import wait_until
from tests.support.local_stack import ENDS, WORKS, Stack, stub_repository

pytestmark = pytest.mark.shared_stack


@pytest.fixture(scope="module")
def first_run(stack):
    """What the first run, called demo, printed, and its states: after it run/demo exists, and all stages are cached."""
    for finished in (".dvc/cache/runs", ".align/remote"):  # of other tests' runs
        shutil.rmtree(stack.root / finished, ignore_errors=True)
    done = stack.align_run("--name", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, stack.states("demo")


def test_runs_are_visible_cached_and_recorded(stack, first_run):
    said, states = first_run
    assert "3 stages ran (ingest, pretrain, index)" in said
    told = ["pretrain: warning: step 1: the embeddings collapse", "verdict: a promotion now would be refused"]
    assert said.splitlines()[-2:] == told
    logged = stack.ask("/logs/filter", {"logs": {"level": {"ge_": 30}}, "limit": 100})
    assert told[0] in [line["message"] for line in logged]
    assert "unused" not in states
    stages = {"ingest", "pretrain", "index"}
    assert {states[name] for name in stages} == {"Completed"}
    assert states["record"] == states["register"] == "Completed"
    assert git(stack.root, "status", "--porcelain") == "?? dvc.lock"
    assert f"register --revision {git(stack.root, 'rev-parse', 'run/demo')}" in said

    branches = git(stack.root, "branch", "--list", "run/demo*")
    second = stack.align_run("--name", "demo")
    assert "0 stages ran, 3 came from the cache" in second.stdout, second.stdout + second.stderr
    states = stack.states("demo")
    assert {states[name] for name in stages} == {"Cached"}
    assert git(stack.root, "branch", "--list", "run/demo*") == branches

    keys = {artifact["key"] for artifact in stack.ask("/artifacts/filter", {})}
    assert {"ingest-report", "pretrain-report", "index-report", "summary"} <= keys


@pytest.mark.journeys
def test_parts_of_the_pipeline(stack):
    done = stack.align_run("--name", "part", "--only", "data")
    assert done.returncode == 0, done.stderr
    assert stack.states("part").keys() == {"data-0", "ingest", "record"}  # the first is the sub-flow
    assert "Registered: nothing, since this run packages no model" in done.stdout
    refused = stack.align_run("--name", "late", "--from", "index", "--set", "pretrain.seed=99")
    assert refused.returncode == 1
    assert "align: error: pretrain must run before index: pretrain is stale (" in refused.stderr
    assert refused.stderr.strip().endswith("); run all, or from pretrain")
    assert stack.states("late") == {}
    before = {*stack.root.glob(".align/worktrees/*")}  # those of failed runs
    assert stack.align_run("--name", "whole").returncode == 0
    plan = stack.run("-m", "align.cli", "plan", "--to", "pretrain", "--set", "pretrain.seed=99")
    assert plan.returncode == 0 and "pretrain.seed 1 -> 99" in plan.stdout, plan.stderr
    assert {*stack.root.glob(".align/worktrees/*")} <= before


def test_a_click_runs_in_a_worktree_and_takes_the_next_branch_of_its_name(stack, first_run):
    before, kept = (stack.root / "params.yaml").read_bytes(), {*stack.root.glob(".align/worktrees/*")}
    first = git(stack.root, "rev-parse", "run/demo")
    request = {"name": "demo", "overrides": {"pretrain.seed": 5}}
    run = stack.click("pipeline", name="Typed / by hand", parameters={"request": request})
    assert stack.wait_for(run, *ENDS) == "COMPLETED"
    assert stack.ask(f"/flow_runs/{run}")["name"] == "demo"  # a run has one name
    assert stack.states("demo")["pretrain"] == "Completed"
    assert (stack.root / "params.yaml").read_bytes() == before
    assert {*stack.root.glob(".align/worktrees/*")} <= kept  # those of failed runs
    assert git(stack.root, "rev-parse", "run/demo") == first
    second = git(stack.root, "rev-parse", "run/demo-2")
    assert "run/demo-2" in stack.ask(f"/flow_runs/{run}")["tags"]
    stack.wait_for_line(run, f"register --revision {second}")
    assert {"demo", "demo-2"} <= {each["info"]["run_name"] for each in stack.mlflow_runs()}
    diff = stack.run("-m", "dvc", "metrics", "diff", "run/demo", "run/demo-2", "--json")
    change = json.loads(diff.stdout)["reports/pretrain/metrics.json"]["pretrain/value"]
    assert (change["old"], change["new"]) == (1, 5)


def test_a_schedule_adds_nothing_while_nothing_changes(stack, first_run):
    """It is off until somebody switches it on. What its runs make has one name, so an equal result finds its branch."""
    [schedule] = stack.ask("/deployments/name/pipeline/train-and-release")["schedules"]
    assert schedule["active"] is False
    said = []
    for _ in range(2):
        run = stack.click("pipeline", parameters=schedule["parameters"])
        assert stack.wait_for(run, *ENDS) == "COMPLETED"
        assert stack.states("scheduled")["pretrain"] == "Cached"
        # Prefect's API may have a run's last lines some time after its end
        wait_until(lambda run=run: any(line.startswith("register --revision") for line in stack.logs(run)))
        said += [line for line in stack.logs(run) if line.startswith(("branch run/", "register --revision"))]
    assert git(stack.root, "branch", "--list", "run/scheduled*") == "run/scheduled"
    commit = git(stack.root, "rev-parse", "run/scheduled")
    assert [" ".join(line.split()[:3]) for line in said[::2]] == ["branch run/scheduled is", "branch run/scheduled has"]
    assert all(f"register --revision {commit}" in line for line in said[1::2])  # which finds the version there


def test_each_make_up_takes_the_file_again_and_keeps_schedules(stack):
    path = "/deployments/name/pipeline/train-and-release"
    deployment = stack.ask(path)
    schedules = f"/deployments/{deployment['id']}/schedules"
    [mondays] = deployment["schedules"]
    stack.ask(f"{schedules}/{mondays['id']}", {"active": True}, "PATCH")
    added = {"schedule": {"cron": "0 9 1 1 *", "timezone": "UTC"}, "active": False}
    stack.ask(schedules, [added], "POST")  # as a person adds one in the UI
    file = stack.root / "prefect.yaml"
    before = file.read_text()
    file.write_text(before.replace("request: {}", "request: {name: another}"))
    said = stack.up().splitlines()
    after = stack.ask(path)
    assert after["parameters"] == {"request": {"name": "another"}}
    assert {(one["id"] == mondays["id"], one["active"]) for one in after["schedules"]} == {(True, True), (False, False)}
    [line] = [line for line in said if "schedule" in line]
    assert re.fullmatch(r"train-and-release has a schedule that is on; next: [0-9-]{10} 03:00:00\+00:00", line)
    for one in after["schedules"]:
        stack.ask(f"{schedules}/{one['id']}", method="DELETE")
    stack.ask(schedules, [{"schedule": mondays["schedule"], "parameters": mondays["parameters"], "active": False}])
    file.write_text(before)  # other tests share the stack, and runs refuse a changed file
    stack.up()


def test_cancelled_from_the_ui_the_checkpoint_survives_and_a_retry_goes_on(stack):
    (stack.root / "checkpoints/step").unlink(missing_ok=True)
    run = stack.start({"name": "cancelled", "seed": 61, "overrides": {"pretrain.weight_decay": 600.0}})
    stack.wait_for_line(run, WORKS)
    assert not (stack.root / "checkpoints/step").exists()
    stack.force(run, "CANCELLING")
    assert stack.wait_for(run, "CANCELLED", "CRASHED") == "CANCELLED"
    assert (stack.root / "checkpoints/step").read_text() == "7"
    assert git(stack.root, "branch", "--list", "run/cancelled") == ""
    [tracked] = stack.mlflow_runs(f"tags.`align.flow_run` = '{run}'")  # with what the stages before have reported
    files = Path(unquote(urlsplit(tracked["info"]["artifact_uri"]).path))
    assert {"tables/metrics.json", "reports/ingest/report.json"} <= {
        file.relative_to(files).as_posix() for file in files.rglob("*")
    }
    listed = json.loads(stack.align("runs", "--json").stdout)["runs"]
    assert [one["state"] for one in listed if one["flow_run"] == run] == ["cancelled"]
    params = {one["key"]: one["value"] for one in tracked["data"]["params"]}  # all that is known before a model is made
    assert params["pretrain.weight_decay"] == "600" and not any(key.startswith("paths.") for key in params)
    tags = {one["key"]: one["value"] for one in tracked["data"]["tags"]}
    assert tags["mlflow.source.git.commit"] == git(stack.root, "rev-parse", "HEAD")
    assert tags["mlflow.source.name"] == "deployment train-and-release" and tags["mlflow.user"]

    worker = stack.root / ".align/logs/worker.log"  # before it says so, it would call a new attempt crashed
    wait_until(lambda: "Cancelled flow run 'cancelled'" in worker.read_text(), says=worker.read_text)
    time.sleep(3)  # as a person would: on a busy machine Prefect's worker says the end of the process a moment later
    (stack.root / "checkpoints/enough-61").touch()  # the trainer ends after a step
    assert stack.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    states = stack.states("cancelled")
    assert (states["ingest"], states["pretrain"], states["index"]) == ("Cached", "Completed", "Completed")
    [again] = stack.mlflow_runs(f"tags.`align.flow_run` = '{run}'")
    assert again["info"]["run_id"] == tracked["info"]["run_id"] and again["info"]["status"] == "FINISHED"


def test_a_failed_stage_fails_the_run_in_one_line_which_keeps_and_shows_its_reports(stack, first_run):
    done = stack.align_run("--name", "refused", "--set", "pretrain.weight_decay=299.0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    states = stack.states("refused")
    assert (states["ingest"], states["pretrain"]) == ("Cached", "Failed")
    assert "index" not in states
    [last] = [line for line in done.stderr.splitlines() if line.startswith("align: error:")]
    assert "failed: the loss is not finite; see reports/pretrain/report.html; or align validate" in last
    told, _, folder = last.rpartition("; the reports and the log of this run are in ")
    assert told.endswith(f"; --from {folder}/reports")
    kept = stack.root / folder
    assert json.loads((kept / "reports/pretrain/metrics.json").read_bytes()) == {"pretrain/value": 1}
    assert (kept / "reports/ingest/report.json").is_file()
    assert "working on pretrain" in (kept / ".align/logs/run.log").read_text()
    artifacts = stack.ask("/artifacts/filter", {"sort": "UPDATED_DESC"})
    shown = [one["data"] for one in artifacts if one["key"] == "pretrain-report" and "Failed:" in one["data"]]
    assert "pretrain/value" in shown[0] and "![figure]" in shown[0] and folder in shown[0]


def test_what_only_the_checkout_has_is_not_replaced(stack, first_run):
    mine = stack.root / "data/raw/mine"
    mine.write_text("fetched with other values")
    done = stack.align_run("--name", "again")
    assert done.returncode == 1
    last = next(line for line in done.stderr.splitlines() if line.startswith("align: error:"))
    assert "data/raw holds what DVC does not know, and stage ingest would replace it" in last
    assert "`dvc commit ingest`" in last
    assert mine.read_text() == "fetched with other values" and "ingest" not in stack.states("again")
    mine.unlink()


@pytest.mark.kill
def test_without_a_server(tmp_path):
    """A run starts one as `make up` does, and ends it."""
    root = tmp_path / "repo"
    stub_repository(root)
    alone = Stack(root)
    command = [sys.executable, "-m", "align.cli", "run", "--name", "alone"]
    with subprocess.Popen(command, cwd=root, env=alone.env, stdout=subprocess.PIPE, text=True) as run:
        port = int(alone.env["ALIGN_PREFECT_PORT"])
        wait_until(lambda: answers(port))
        for login, code in ((None, 401), ("align:wrong", 401), (alone.login, 200)):
            assert count_flow_runs(port, login) == code
        for foreign in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}):
            assert count_flow_runs(port, alone.login, foreign) == 403
        stdout = run.communicate()[0]
    assert run.returncode == 0, stdout
    assert "3 stages ran" in stdout and not answers(port)
    state = root / ".align/prefect/prefect.db"  # and nothing in the home directory
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    alone.up()
    assert alone.states("alone")["pretrain"] == "Completed"  # it is there to look at
    alone.down()
    alone.close()


def answers(port):
    with suppress(OSError):
        return bool(count_flow_runs(port, None))
    return False


def count_flow_runs(port, login, headers=MappingProxyType({})):
    """The status of a question to Prefect's server at this port."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/flow_runs/count", b"{}", {**headers}, method="POST")
    request.add_header("Content-Type", "application/json")
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_taken_port_is_named(stack, tmp_path):
    other = Stack(tmp_path)
    other.env["ALIGN_PREFECT_PORT"] = stack.env["ALIGN_PREFECT_PORT"]
    done = other.run("-m", "infra.local", "up")
    other.close()
    assert done.returncode == 1
    assert f"port {stack.env['ALIGN_PREFECT_PORT']} is taken" in done.stderr
