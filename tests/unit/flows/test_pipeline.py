"""The name of a run: the request's, or the one that a person typed as Prefect's own; and the last line of its log."""

import logging
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from align.errors import ConfigError, DataError
from align.services.git import git
from flows import pipeline
from flows.pipeline import name_of
from flows.request import Request
from flows.run import record


@pytest.fixture(name="repo")
def _repo(tmp_path):
    git(tmp_path, "init", "--quiet")
    return tmp_path


@pytest.mark.parametrize(("typed", "asked", "name"), [
    ("My first / try", None, "My-first-try"),
    ("My first / try", "  ", "My-first-try"),
    ("mauve-cuckoo", None, "mauve-cuckoo"),
    ("mauve-cuckoo", "wide", "wide"),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_the_request_s_name_or_prefect_s(repo, typed, asked, name, monkeypatch):
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", typed)
    assert name_of(repo, Request(name=asked)) == name


@pytest.mark.parametrize("asked", ["a b", "a..b", "-x", "x" * 300])
def test_a_name_that_was_asked_for_is_not_changed_but_refused(repo, asked):
    with pytest.raises(ConfigError, match="run name"):
        name_of(repo, Request(name=asked))


@pytest.mark.parametrize("typed", ["Gorgeous-Mudi", "My try", "wide"])
def test_a_name_that_a_program_asked_for_is_shown_in_prefect(repo, typed, monkeypatch):
    renamed = []

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update_flow_run(self, _, *, name):
            renamed.append(name)

    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", typed)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid4()))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    monkeypatch.setattr(pipeline, "get_client", lambda **_: Client())
    assert name_of(repo, Request(name="wide")) == "wide"
    assert renamed == ([] if typed == "wide" else ["wide"])


@pytest.mark.parametrize(("state", "said"), [
    (SimpleNamespace(name="Completed", message=None, data=SimpleNamespace(result="a table\nit is the champion")),
     "Completed: it is the champion"),
    (SimpleNamespace(name="Failed", message="no such host", data=None), "Failed: no such host"),
    (DataError("no such\nhost"), "Failed: no such host"),
], ids=["result", "message", "error"])  # fmt: skip
def test_the_last_line_of_a_run_is_the_reason(state, said, monkeypatch, tmp_path):
    run = str(uuid4())
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run)
    monkeypatch.chdir(tmp_path)
    if isinstance(state, Exception):
        with pytest.raises(DataError), record.in_progress("x"):
            raise state
        state = SimpleNamespace(name="Failed", message="Flow run encountered an exception: DataError", data=None)
    record.end_record(None, SimpleNamespace(id=UUID(run)), state)

    def shown(message, flow_run_id):
        line = logging.makeLogRecord({"msg": message, "flow_run_id": flow_run_id})
        return line.getMessage() if record._ONE_LINE.filter(line) else None

    assert shown("Running hook 'end_record' in response to entering state 'Completed'", run) is None
    assert shown("Hook 'end_record' finished running successfully", run) is None
    assert shown("Finished in state Completed()", "of a sub-flow") == "Finished in state Completed()"
    assert shown("Finished in state Completed()", run) == said
