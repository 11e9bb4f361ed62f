"""The name of a run: the request's, or the one that a person typed as Prefect's own."""

from uuid import uuid4

import pytest

from align.errors import ConfigError
from align.services.git import git
from flows import pipeline
from flows.pipeline import name_of
from flows.request import Request


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
