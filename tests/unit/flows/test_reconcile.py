"""What a repair does with each record, and what it leaves: real locks, records and MLflow; Prefect's answers are given.

On a real server: tests/integration/test_killed_runs.py.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from align.errors import DataError, ServiceError
from align.pipeline.run_records import FOLDER, RunRecord, hold
from align.services.tracking.tracker import Tracker
from flows import reconcile as module
from flows.reconcile import Processes, is_dead, look, reconcile

#: Seconds since 1970.
STARTED = 1_000_000.0


def flow_run(kind, changed_at=STARTED):
    state = State(type=kind, timestamp=datetime.fromtimestamp(changed_at, UTC))
    return FlowRun(flow_id=uuid4(), state=state, state_type=kind)


@pytest.mark.parametrize("kind", [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
def test_one_that_a_process_works_on_is_not_dead(kind):
    run = flow_run(kind)
    assert not is_dead(run, Processes(frozenset({str(run.id)}), None))
    assert is_dead(run, Processes(frozenset({str(uuid4())}), None))


@pytest.mark.parametrize(("kind", "worker", "dead"), [
    (StateType.PENDING, STARTED - 60, False),  # it submitted it, and may be about to start its process
    (StateType.PENDING, STARTED + 1, False),  # clocks differ
    (StateType.PENDING, STARTED + 60, True),  # of an earlier worker
    (StateType.CANCELLING, STARTED - 60, False),  # it obeys
    (StateType.CANCELLING, STARTED + 60, True),
    (StateType.RUNNING, STARTED - 60, True),  # its process had begun, and is there no more
])  # fmt: skip
def test_beside_a_worker_a_run_that_it_may_start_is_not_dead(kind, worker, dead):
    assert is_dead(flow_run(kind), Processes(frozenset(), worker)) == dead


def test_processes_tell_by_their_environment_and_their_folder(tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    sleep = [sys.executable, "-c", "import time; print('there', flush=True); time.sleep(60)"]
    run = str(uuid4())
    before = time.time()
    started = [
        subprocess.Popen(sleep, cwd=elsewhere, env={"PREFECT__FLOW_RUN_ID": run}, stdout=subprocess.PIPE),
        subprocess.Popen([*sleep, "worker", "start"], cwd=elsewhere, stdout=subprocess.PIPE),
    ]
    try:
        for process in started:
            assert process.stdout and process.stdout.readline()
        found = look(here)
        assert run in found.runs and found.oldest_worker is None
        started.append(subprocess.Popen([*sleep, "worker", "start"], cwd=here, stdout=subprocess.PIPE))
        worker = started[-1]
        assert worker.stdout and worker.stdout.readline()
        found = look(here)
        assert found.oldest_worker is not None and before - 1 < found.oldest_worker < time.time() + 1
        started[0].kill()
        started[0].wait()
        assert run not in look(here).runs
    finally:
        for process in started:
            process.kill()
            process.communicate()


class Prefect:
    """Answers for Prefect's server.

    Attributes:
        answer: what was done, None, or the error to raise.
        asked: the records that were to be ended, each with whether it is an attempt of the run that asks.
    """

    def __init__(self):
        self.answer = "in Prefect flow run x is Crashed"
        self.asked = []

    def end(self, record, *, is_mine):
        self.asked.append((record.attempt_id, is_mine))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(name="prefect", autouse=True)
def _prefect(monkeypatch):
    prefect = Prefect()
    monkeypatch.setattr(module, "end_in_prefect", prefect.end)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return prefect


def record(root, **values):
    return replace(RunRecord("demo", "f1", 1, "", "", str(root)), **values)  # type: ignore[arg-type]  # values of several types


def dead(root, **values):
    """The record of a run whose process has ended; returns the file."""
    run = record(root, **values)
    hold(run).close()
    return root / FOLDER / f"{run.attempt_id}.json"


def repaired(root, mine=None):
    said = []
    return said, reconcile(root, said.append, mine)


def test_a_dead_one_is_ended_once_and_a_live_one_is_not(tmp_path, prefect):
    live = hold(record(tmp_path, flow_run="f2"))
    dead(tmp_path)
    dead(tmp_path, flow_run="f3", flow="promote", name="promote")
    assert repaired(tmp_path) == (
        [
            "run 'demo' was killed: in Prefect flow run x is Crashed",
            "flow promote was killed: in Prefect flow run x is Crashed",
        ],
        (2, 0),
    )
    assert prefect.asked == [("f1-1", False), ("f3-1", False)]
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["f2-1.json", "f2-1.lock"]
    assert repaired(tmp_path) == ([], (0, 0))
    live.close()


def test_an_earlier_attempt_of_the_run_that_asks(tmp_path, prefect):
    dead(tmp_path)
    mine = hold(record(tmp_path, attempt=2))
    assert repaired(tmp_path, mine.record)[1] == (1, 0)
    assert prefect.asked == [("f1-1", True)]
    mine.close()


def test_nothing_to_say_is_not_said(tmp_path, prefect):
    prefect.answer = ""
    file = dead(tmp_path)
    (tmp_path / FOLDER / "f9-1.lock").touch()  # it died before it wrote its record
    assert repaired(tmp_path) == ([], (0, 0))
    assert not file.exists() and list((tmp_path / FOLDER).iterdir()) == []


def test_one_whose_next_attempt_works_elsewhere_is_left_to_it(tmp_path, prefect):
    prefect.answer = None
    file = dead(tmp_path)
    assert repaired(tmp_path) == ([], (0, 0))
    assert file.exists()


def test_of_another_machine_or_of_the_first_folder_of_a_copy(tmp_path, prefect):
    first = tmp_path / "first"
    file = dead(first)
    theirs = json.loads(file.read_bytes())
    file.write_text(json.dumps(theirs | {"host": "elsewhere", "boot": "another"}))
    said, counts = repaired(first)
    assert said == ["run 'demo': is elsewhere's; `align runs --repair` there says whether it lives"]
    assert counts == (0, 1) and file.exists()
    shutil.copytree(first, tmp_path / "copy")
    said, counts = repaired(tmp_path / "copy")
    assert said == [f"run 'demo': belongs to {first}; this folder is a copy of it and forgets the run"]
    assert counts == (1, 0) and not list((tmp_path / "copy" / FOLDER).iterdir())
    assert file.exists() and not prefect.asked


def test_what_cannot_be_ended_now_stays_recorded(tmp_path, prefect):
    """A server that does not answer, another server, a record that cannot be read: the others are ended."""
    prefect.answer = ServiceError("Prefect does not answer")
    file = dead(tmp_path)
    other = dead(tmp_path, flow_run="f2", prefect="http://127.0.0.1:9/api")
    broken = dead(tmp_path, flow_run="f3")
    broken.write_text("{")
    said, counts = repaired(tmp_path)
    assert counts == (0, 3) and file.exists() and other.exists() and broken.exists()
    assert said[0] == "run 'demo' was killed: Prefect does not answer: left for the next time"
    assert "it is a run of another Prefect server, http://127.0.0.1:9/api (PREFECT_API_URL): left for" in said[1]
    assert "no record of this version" in said[2]
    assert [attempt for attempt, _ in prefect.asked] == ["f1-1"]
    prefect.answer = "done"
    assert repaired(tmp_path)[1] == (1, 2)
    assert not file.exists()


def test_its_run_in_mlflow_is_killed_and_no_other_one(tmp_path, prefect):
    """Also where Prefect does not answer: what can be done is done."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    for name, attempt in (("mine", "f1-1"), ("next", "f1-2"), ("theirs", None)):
        tracker.start_run("align", name, attempt)
    tracker.end_run(tracker.start_run("align", "ended", "f1-1"), status="FINISHED")
    prefect.answer = ServiceError("Prefect does not answer")
    file = dead(tmp_path)
    said, counts = repaired(tmp_path)
    assert counts == (0, 1) and file.exists()
    assert said == [
        "run 'demo' was killed: in MLflow its run is KILLED; Prefect does not answer: left for the next time"
    ]
    assert {run.name: run.status for run in tracker.runs("", "align")} == {
        "mine": "KILLED", "next": "RUNNING", "theirs": "RUNNING", "ended": "FINISHED",
    }  # fmt: skip


def test_mlflow_that_does_not_answer_keeps_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:9")  # its login is in no record
    file = dead(tmp_path, mlflow=module.mlflow_address(tmp_path))
    assert "word" not in file.read_text()
    said, counts = repaired(tmp_path)
    assert counts == (0, 1) and file.exists() and "word" not in said[0]
    assert said[0].startswith("run 'demo' was killed: in Prefect flow run x is Crashed; MLflow at ")


def test_what_fails_beside_the_records_does_not_keep_them(tmp_path, monkeypatch):
    def fails(*_):
        raise DataError("git fails")

    def waits(*_):
        raise ServiceError("Prefect does not answer")

    monkeypatch.setattr(module, "sweep", fails)
    monkeypatch.setattr(module, "end_unrecorded", waits)
    dead(tmp_path)
    said, counts = repaired(tmp_path)
    assert said[0] == "the worktrees of killed runs stay: git fails" and counts == (1, 1)
    assert said[-1].startswith("Prefect does not answer: runs that were killed before they began are left")


def test_the_command_says_whether_something_is_left(tmp_path, prefect, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert module.main([]) == 0
    assert "no killed run is left to repair" in capsys.readouterr().err
    assert module.main(["--quiet"]) == 0 and capsys.readouterr().err == ""
    prefect.answer = ServiceError("Prefect does not answer")
    dead(tmp_path)
    assert module.main([]) == 1
    assert "no killed run" not in capsys.readouterr().err
    prefect.answer = "done"
    assert module.main(["--quiet"]) == 0
    assert "run 'demo' was killed: done" in capsys.readouterr().err
