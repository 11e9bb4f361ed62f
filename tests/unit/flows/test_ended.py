"""What a repair does with each record, and what it leaves: real locks, records and MLflow; Prefect's answers are given.

On a real server: tests/integration/test_killed_runs.py.
"""

import json
from dataclasses import replace
from uuid import UUID

import pytest

from align.durable.run_records import FOLDER, RunRecord, hold
from align.errors import DataError, ServiceError
from align.services.tracking.tracker import Tracker
from flows import ended as module
from flows.ended import repair

ONE, OTHER, THIRD = (str(UUID(int=number)) for number in (1, 2, 3))


class Prefect:
    """Answers for Prefect's server.

    Attributes:
        answer: what was done, or the error to raise.
        asked: the runs that were to be ended.
    """

    def __init__(self):
        self.answer = "in Prefect flow run x is Crashed"
        self.asked = []

    def end(self, run_id):
        self.asked.append(str(run_id))
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


def dead(root, run=ONE, **values):
    """The file of a run whose process has ended."""
    hold(root, replace(RunRecord("demo", run), **values))._file.close()
    return root / FOLDER / f"{run}.json"


def repaired(root):
    said = []
    return said, repair(root, said.append)


def test_a_dead_one_is_ended_once_and_a_live_one_is_not(tmp_path, prefect):
    live = hold(tmp_path, RunRecord("demo", OTHER))
    dead(tmp_path)
    dead(tmp_path, THIRD, flow="promote", name="promote")
    assert repaired(tmp_path) == (
        [
            "run 'demo' was killed: in Prefect flow run x is Crashed",
            "flow promote was killed: in Prefect flow run x is Crashed",
        ],
        (2, 0),
    )
    assert prefect.asked == [ONE, THIRD]
    assert [path.stem for path in (tmp_path / FOLDER).iterdir()] == [OTHER]
    assert repaired(tmp_path) == ([], (0, 0))
    live.remove()


def test_nothing_to_say_is_not_said(tmp_path, prefect):
    prefect.answer = ""
    file = dead(tmp_path)
    assert repaired(tmp_path) == ([], (0, 0)) and not file.exists()


def test_another_machine_s_is_left_alone(tmp_path, prefect):
    file = dead(tmp_path, host="elsewhere")
    assert repaired(tmp_path) == ([], (0, 0)) and file.exists() and not prefect.asked


def test_what_cannot_be_ended_now_stays_recorded(tmp_path, prefect):
    """A server that does not answer, another server, a record that cannot be read: the others are ended."""
    prefect.answer = ServiceError("Prefect does not answer")
    file, broken = dead(tmp_path), dead(tmp_path, THIRD)
    other = dead(tmp_path, OTHER, prefect="http://127.0.0.1:9/api")
    broken.write_text("{")
    said, counts = repaired(tmp_path)
    assert counts == (0, 3) and file.exists() and other.exists() and broken.exists()
    text = "\n".join(said)
    assert "run 'demo' was killed: Prefect does not answer: left for the next time" in text
    assert "it is a run of another Prefect server, http://127.0.0.1:9/api (PREFECT_API_URL): left for" in text
    assert "no record of a run of this version" in text
    assert prefect.asked == [ONE]
    prefect.answer = "done"
    assert repaired(tmp_path)[1] == (1, 2) and not file.exists()


def test_its_run_in_mlflow_is_killed_and_no_other_one(tmp_path, prefect):
    """Also where Prefect does not answer: what can be done is done."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    mine, over = tracker.start_run("align", "mine"), tracker.start_run("align", "over")
    tracker.start_run("align", "theirs")
    tracker.end_run(over, status="FINISHED")
    prefect.answer = ServiceError("Prefect does not answer")
    file = dead(tmp_path, mlflow_run=mine)
    dead(tmp_path, OTHER, mlflow_run=over)
    said, counts = repaired(tmp_path)
    assert counts == (0, 2) and file.exists()
    assert "was killed: in MLflow its run is KILLED; Prefect does not answer: left for the next time" in said[0]
    assert {run.name: run.status for run in tracker.runs("", "align")} == {
        "mine": "KILLED", "theirs": "RUNNING", "over": "FINISHED",
    }  # fmt: skip


def test_mlflow_that_does_not_answer_keeps_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@127.0.0.1:9")
    file = dead(tmp_path, mlflow_run="0" * 32)
    said, counts = repaired(tmp_path)
    assert counts == (0, 1) and file.exists() and "word" not in said[0]
    assert said[0].startswith("run 'demo' was killed: in Prefect flow run x is Crashed; MLflow at ")


def test_worktrees_that_cannot_be_removed_keep_no_record(tmp_path, monkeypatch):
    def fails(*_):
        raise DataError("git fails")

    monkeypatch.setattr(module, "prune", fails)
    dead(tmp_path)
    said, counts = repaired(tmp_path)
    assert said[0] == "older worktrees stay: git fails" and counts == (1, 0)


def test_the_command_says_whether_something_is_left(tmp_path, prefect, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert module.main([]) == 0
    assert "no killed run is left to repair" in capsys.readouterr().err
    assert module.main(["--quiet"]) == 0 and capsys.readouterr().err == ""
    prefect.answer = ServiceError("Prefect does not answer")
    file = dead(tmp_path)
    assert module.main([]) == 1 and json.loads(file.read_bytes())["flow_run"] == ONE
    assert "no killed run" not in capsys.readouterr().err
    prefect.answer = "done"
    assert module.main(["--quiet"]) == 0
    assert "run 'demo' was killed: done" in capsys.readouterr().err
