"""Approval on a real Prefect server, by a real worker and the real `align promote`: what people answer, and when."""

import pytest

from align.config.params import write_params
from align.config.release import RegisterConfig
from align.services.tracking.tracker import Tracker
from tests.support import registered, wait_until
from tests.support.local_stack import ENDS, Stack, stub_repository
from tests.support.registered import RECALL

pytestmark = pytest.mark.kill

ANN = {"decision": "approve", "who": "--version=7 <b>Ann", "why": "it reads | signs"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The stack over a repository whose `align` is the real one, and what is registered in its MLflow."""
    root = tmp_path_factory.mktemp("approval") / "repo"
    stub_repository(root)
    (root / "bin/align").write_text('#!/bin/sh\nexec python -m align.cli "$@"\n')
    write_params(root / "params.yaml", {"promote.approval": True, "promote.metrics": [RECALL]})
    stack = Stack(root)
    try:
        stack.up()
        mlflow = Tracker(f"sqlite:///{root}/mlflow.db")
        outputs = registered.write(tmp_path_factory.mktemp("outputs"), f"sqlite:///{root}/mlflow.db")
        outputs.config = RegisterConfig(experiment="stub", model_name="stub")
        outputs.tracker = mlflow
        yield stack, outputs
    finally:
        stack.run("-m", "infra.local", "down")
        stack.close()


def candidate(outputs, recall):
    """A registered version that has measured this: a real model, since the gates let it predict."""
    outputs.evaluate(recall)
    return outputs.register().version


def ask(stack):
    """A click on `promote`; returns the id of the run that waits for an answer."""
    run = stack.click("promote", name="typed by hand")
    assert stack.ask(f"/flow_runs/{run}")["name"] == "typed by hand"
    assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    approvals = [each for each in runs(stack) if not each["parameters"].get("ends")]
    waiting = max(approvals, key=lambda each: str(each["created"]))["id"]
    assert stack.wait_for(waiting, "PAUSED", *ENDS) == "PAUSED", stack.logs(waiting)
    form = f"/flow_runs/{waiting}/input/filter"  # Prefect stores it after the state
    wait_until(lambda: stack.ask(form, {"prefix": "suspended"}))
    return str(waiting)


def runs(stack):
    """All runs of the flow `approve`."""
    return list(stack.ask("/flow_runs/filter", {"flows": {"name": {"any_": ["approve"]}}}))


def answer(stack, run, person=None, **values):
    """What Prefect's server says to an answer in the form."""
    return str(stack.ask(f"/flow_runs/{run}/resume", {"run_input": values}, person=person)["status"])


def champions(tracker):
    state = tracker.registry.champion_state("stub")
    return state.champion, [(move.kind, move.before, move.to) for move in state.moves]


def test_what_people_answer_decides(made):
    stack, outputs = made
    mlflow = outputs.tracker
    candidate(outputs, 0.5)
    first = ask(stack)
    wrong = (
        {}, ANN | {"decision": "maybe"}, ANN | {"who": " "}, ANN | {"why": "x" * 1001},
        ANN | {"why": "see https://me:secret@host/"}, ANN | {"more": "x"},
    )  # fmt: skip
    assert [answer(stack, first, **each) for each in wrong] == ["REJECT"] * len(wrong)
    assert stack.wait_for(stack.click("promote"), *ENDS) == "COMPLETED"
    assert len([each for each in runs(stack) if not each["parameters"].get("ends")]) == 1

    # neither server nor worker need to live while a person thinks, and what repairs dead runs leaves it alone
    stack.down()
    stack.up()
    assert stack.run("-m", "align.cli", "runs", "--repair").returncode == 0
    assert stack.wait_for(first, "PAUSED", timeout_s=1) == "PAUSED" and champions(mlflow) == (None, [])
    assert answer(stack, first, **ANN) == "ACCEPT"
    assert stack.wait_for(first, *ENDS) == "COMPLETED", stack.logs(first)
    wait_until(lambda: stack.logs(first)[-1].startswith("Completed: stub version 1 (run "))
    assert champions(mlflow) == (1, [("promoted", None, 1)])
    move = mlflow.registry.champion_state("stub").moves[0]
    assert move.who == f"--version=7 <b>Ann, by flow run {first}" and move.why.endswith("; approved: it reads | signs")
    assert not [each for each in runs(stack) if each["parameters"].get("ends")]  # nothing is left to end

    candidate(outputs, 0.6)
    second = ask(stack)
    assert answer(stack, second, "bob@team", decision="reject", who="Ann", why="slow on phones") == "ACCEPT"
    assert stack.wait_for(second, *ENDS) == "COMPLETED", stack.logs(second)
    assert champions(mlflow) == (1, [("promoted", None, 1), ("rejected", 1, 1)])
    move = mlflow.registry.champion_state("stub").moves[1]
    assert move.why == "version 2 was rejected: slow on phones"
    assert move.who == f"bob@team, by flow run {second}"  # as the proxy knows him, whatever he typed

    third = ask(stack)
    mlflow.registry.set_alias(candidate(outputs, 0.7), "champion")
    assert answer(stack, third, **ANN) == "ACCEPT"
    assert stack.wait_for(third, *ENDS) == "FAILED"
    was = "version 2 is not promoted: the champion was version 1 when the promotion was judged, and now is version 3"
    wait_until(lambda: any(was in line for line in stack.logs(third)))  # Prefect sends lines in batches
    assert champions(mlflow) == (3, [("promoted", None, 1), ("rejected", 1, 1), ("by hand", 1, 3)])

    back = stack.click("rollback", person="carol", parameters={"why": "slow"}, labels={"align.who": "Ann"})
    assert stack.wait_for(back, *ENDS) == "COMPLETED", stack.logs(back)
    move = mlflow.registry.champion_state("stub").moves[-1]
    assert (move.kind, move.to, move.who) == ("rolled back", 1, f"carol, by flow run {back}")


def test_without_an_answer_in_time_nothing_moves(made):
    stack, outputs = made
    mlflow = outputs.tracker
    write_params(stack.root / "params.yaml", {"promote.approval_timeout_h": 0.02})
    candidate(outputs, 0.9)
    before = champions(mlflow)
    late = ask(stack)
    assert stack.wait_for(late, *ENDS) == "FAILED"
    said = stack.ask(f"/flow_runs/{late}")["state"]["message"]
    assert said.endswith("was not approved within 0.02 h; nothing was moved"), said
    assert champions(mlflow) == before
    assert answer(stack, late, **ANN) == "ABORT"  # too late for Prefect, too
