"""What a person sees of a promotion, and what becomes of what they type."""

import json
import shutil
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType

from flows.approve import Answer, Judged, NotApprovedError, _arguments, decision_page
from tests.support.params import PARAMS_FILE

module, promote_module = (import_module(f"flows.{name}") for name in ("approve", "promote"))
JUDGED = Judged(version=3, champion=1, hours=72.0)
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
TOO_LATE = "version 3 was not approved within 72 h; nothing was moved"
APPROVED = ("--version=3", "--expect-champion=1", "--approved-by=Ann")


@pytest.mark.parametrize(("judged", "given", "words"), [
    (JUDGED, {}, (*APPROVED, "--because=better")),
    (
        JUDGED.model_copy(update={"champion": 0}), {},
        ("--version=3", "--expect-champion=0", "--approved-by=Ann", "--because=better"),
    ),
    (JUDGED, {"decision": "reject"}, ("--version=3", "--rejected-by=Ann", "--because=better")),
    (
        JUDGED, {"who": "--json", "why": "a\0b\x1b[2J\nsee https://me:secret@host/"},
        ("--version=3", "--expect-champion=1", "--approved-by=--json",
         r"--because=a\u0000b\u001b[2J\nsee https://host/"),
    ),
    (JUDGED, {"why": "\0" * 1000}, (*APPROVED, f"--because={(chr(92) + 'u0000') * 166}" + r"\u00")),
])  # fmt: skip
def test_what_people_type_is_words_and_nothing_else(judged, given, words):
    answer = Answer.model_validate({"decision": "approve", "who": "Ann", "why": "better"} | given)
    assert _arguments(judged, answer) == words


def test_the_page_is_the_one_that_promote_wrote(tmp_path):
    decision = {"outcome": "refused", "reason": "worse\x1b[2J", "candidate": 3, "champion": None}
    assert decision_page(decision) == r"**refused**: worse\\u001b\[2J"
    (tmp_path / "promotion.md").write_text("| gate |")
    assert decision_page(decision | {"page": f"{tmp_path}/promotion.html"}) == "| gate |"
    assert "worse" in decision_page(decision | {"page": f"{tmp_path}/gone/promotion.html"})


def test_the_form_is_a_question_its_reason_one_link_and_three_fields(monkeypatch):
    client, shown, asked = Prefect([run(created=datetime.now(UTC))]), [], []
    use(monkeypatch, client)
    monkeypatch.setattr(module, "put_markdown", lambda key, about, text: shown.append(text) or "a1")

    def suspend(wait_for_input, key):
        asked.append(wait_for_input)
        raise RuntimeError("it waits")

    monkeypatch.setattr(module, "suspend_flow_run", suspend)
    with pytest.raises(RuntimeError, match="it waits"):
        module.approve.fn(JUDGED.model_copy(update={"why": "mean of *a* is 4.3%", "page": "| gate |"}))
    assert asked[0]._description == (
        r"Make version 3 the champion? Mean of \*a\* is 4.3%. "
        "[All figures](../../artifacts/artifact/a1)"
    )
    assert "| gate |" in shown[0] and shown[0].startswith("Until ")
    fields = Answer.model_json_schema()["properties"]
    assert [one["title"] for one in fields.values()] == ["Decision", "Your name", "Why"]
    assert not any("description" in one for one in fields.values())  # a line each


class Prefect:
    """In place of Prefect's client: runs of the flow `approve`, and what is asked of them."""

    def __init__(self, runs, resumed=()):
        self.runs, self.resumed = runs, resumed
        self.created = []
        self.failed = []

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def read_deployment_by_name(self, name):
        return SimpleNamespace(id=uuid4())

    def read_flow_run(self, run_id):
        return self.runs[0]

    def read_flow_runs(self, **_):
        return self.runs

    def read_flow_run_states(self, run_id):
        return [SimpleNamespace(name="Resuming", timestamp=when) for when in self.resumed]

    def create_flow_run_from_deployment(self, deployment, **given):
        self.created.append(given)
        return SimpleNamespace(id=uuid4(), name=given["name"])

    def set_flow_run_state(self, run_id, state, *, force):
        self.failed.append(str(state.message))


def run(**values):
    given = {"id": uuid4(), "name": "waiting", "created": NOW, "state_type": StateType.PAUSED, "parameters": {}}
    return SimpleNamespace(**(given | values))


def use(monkeypatch, client):
    monkeypatch.setattr(module, "get_client", lambda **_: client)
    monkeypatch.setattr(module, "in_progress", nullcontext)
    monkeypatch.setattr(module, "runtime", SimpleNamespace(flow_run=SimpleNamespace(id=str(uuid4()))))


@pytest.mark.parametrize(("state", "said", "num_failed"), [
    (StateType.PAUSED, TOO_LATE, 1), (StateType.COMPLETED, "answered, or ended, in time", 0),
    (StateType.RUNNING, "answered, or ended, in time", 0),
])  # fmt: skip
def test_at_the_end_of_its_time_a_run_that_nobody_answered_ends_and_no_other(monkeypatch, state, said, num_failed):
    client = Prefect([run(state_type=state)])
    use(monkeypatch, client)
    assert module.approve.fn(JUDGED, ends=uuid4()) == said
    assert client.failed == [TOO_LATE] * num_failed and client.created == []


@pytest.mark.parametrize("hours_late", [0.1, 100.0])
def test_an_answer_after_the_time_is_refused_although_nobody_ended_the_run(monkeypatch, hours_late):
    client = Prefect([run()], resumed=[NOW + timedelta(hours=JUDGED.hours + hours_late)])
    use(monkeypatch, client)
    monkeypatch.setattr(module, "suspend_flow_run", lambda **_: pytest.fail("it asks again"))
    with pytest.raises(NotApprovedError, match=f"^{TOO_LATE}$"):
        module.approve.fn(JUDGED)
    assert client.created == []


@pytest.mark.parametrize(("waiting", "asks"), [
    ({"judged": {"version": 3, "champion": 1}}, False),
    ({"judged": {"version": 2, "champion": 1}}, True),
    ({"judged": {"version": 3, "champion": 0}}, True),
    ({"judged": {"version": 3, "champion": 1}, "ends": "a run"}, True),  # it only ends another one
])  # fmt: skip
def test_a_person_is_asked_once_about_the_same_promotion(monkeypatch, waiting, asks):
    client = Prefect([run(parameters=waiting)])
    use(monkeypatch, client)
    decision = {"outcome": "unapproved", "reason": "better", "candidate": 3, "champion": 1}
    said = module.ask(decision, 72.0)
    assert ("waits for approval already: flow run waiting" in said) is not asks
    assert [given["name"] for given in client.created] == ["approve version 3"] * asks


@pytest.mark.parametrize(("outcome", "num_asked"), [("unapproved", 1), ("promoted", 0), ("unchanged", 0)])
def test_promote_asks_a_person_where_one_is_needed(tmp_path, monkeypatch, outcome, num_asked):
    decision, asked = {"outcome": outcome, "reason": "better", "candidate": 3, "champion": 1}, list[float]()

    def command(verb, words):
        Path(words[-1].removeprefix("--json=")).write_text(json.dumps(decision))
        return ["the last line"]

    def ask(given, hours):
        asked.append(hours)
        return "somebody is asked"

    shutil.copy(PARAMS_FILE, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    for name, value in {"command": command, "ask": ask, "put_markdown": lambda *_: None}.items():
        monkeypatch.setattr(promote_module, name, value)
    monkeypatch.setattr(promote_module, "in_progress", nullcontext)
    said = promote_module.promote.fn()
    assert (said, asked) == (("somebody is asked", [72.0]) if num_asked else ("the last line", []))
