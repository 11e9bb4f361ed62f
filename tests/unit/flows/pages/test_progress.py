"""The progress of a run: what a stage writes for it, and that no server can slow or fail a run by it."""

import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import uuid4

import pytest

from align.display import console
from align.display.console import PROGRESS_VARIABLE, say, track
from align.display.progress import Work, describe, read_said
from flows.dag import Stage
from flows.pages import progress
from flows.pages.progress import of_run, put_markdown
from flows.run.context import RunContext, child_environment, progress_file
from tests.support import wait_until

STAGES = [
    Stage(name, f"what {name} does", "data", (), (), (), f"reports/{name}") for name in ("ingest", "fit_tokenizer")
]

RUN = uuid4()


def test_what_a_stage_says_is_in_the_file(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_VARIABLE, str(file))
    monkeypatch.setattr(console, "PROGRESS_INTERVAL_S", 0.0)
    assert list(track("abcd", what="filter: shards", total=4)) == list("abcd")
    say("a warning \x1b[2J")
    found = read_said(file)
    assert (found.work.done, found.work.total, found.work.percent) == (4, 4, 100.0)
    assert found.work.line.startswith("filter: shards: 4 of 4") and found.lines[-1] == r"a warning \u001b[2J"
    for number in range(50):
        say(str(number))
    assert read_said(file).lines == tuple(str(number) for number in range(38, 50))  # the last ones
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_what_the_launcher_of_the_ranks_says_does_not_hide_how_far_they_are(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_VARIABLE, str(file))
    said = "from align.display.console import say; say('pretrain: step 73 of 90', done=73, total=90)"
    subprocess.run([sys.executable, "-c", said], check=True, timeout=60)  # a rank
    say("align: error: training was stopped by SIGTERM")
    found = read_said(file)
    assert found.lines == ("pretrain: step 73 of 90", "align: error: training was stopped by SIGTERM")
    assert found.work == Work(line="pretrain: step 73 of 90", done=73, total=90)


def test_where_the_file_cannot_be_written_the_stage_works(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "nowhere/progress.json"))
    say("a line", done=1, total=2)
    monkeypatch.delenv(PROGRESS_VARIABLE)
    say("a line")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"lines": ["a"', b'{"lines": 1, "work": {}}', b'{"work": {"done": "x"}}', b"\xff\xfe"]
)
def test_a_file_that_is_cut_off_or_none_counts_as_none_and_is_replaced(tmp_path, content, monkeypatch):
    file = tmp_path / "progress.json"
    assert read_said(file).lines == ()
    file.write_bytes(content)
    assert read_said(file).lines == ()
    monkeypatch.setenv(PROGRESS_VARIABLE, str(file))
    say("ingest: 1 of 2", done=1, total=2)
    assert read_said(file).lines == ("ingest: 1 of 2",) and read_said(file).work.done == 1


def test_time_left_is_by_the_rate_of_the_stage():
    assert describe(Work(line="pretrain: step 200 of 800", done=200, total=800, per_s=0.5)) == (
        "pretrain: step 200 of 800 (20 min left)"
    )
    told = Work(line="pretrain: step 200 of 800, 1200 s left", done=200, total=800, per_s=0.5)
    assert describe(told) == told.line  # once is enough
    assert describe(Work(line="x", done=3)) == "x" and Work(done=3).percent is None
    assert Work(done=9, total=3, per_s=1.0).percent == 100.0 and Work(done=0, total=9, per_s=0.0).left_s is None


@pytest.mark.parametrize(("line", "expected", "left"), [
    ("ingest: 1 of 4", {"ingest": 80.0, "fit_tokenizer": 540.0}, "about 10 min"),
    ("ingest: 1 of 4", {"ingest": 80.0}, "about 1 min"),  # the other comes from the cache
    ("ingest: 1 of 4", {"ingest": 80.0, "fit_tokenizer": None}, "more than 1 min"),
    ("ingest: begins", {"ingest": 60.0, "fit_tokenizer": 540.0}, "about 10 min"),
    ("ingest: begins", {"ingest": None}, ""),
])  # fmt: skip
def test_a_stage_s_progress_says_which_of_the_run_s_it_is_and_what_is_left_of_all(line, expected, left):
    work = Work(line=line, per_s=0.05, **({"done": 1, "total": 4} if "of" in line else {}))
    found, said = of_run(work, STAGES, expected)
    assert found.line == f"stage 1 of 2, {line}" and said == (f"; the whole run: {left} left" if left else "")
    assert of_run(Work(line="evaluate: 1 of 4"), STAGES, expected) == (Work(line="evaluate: 1 of 4"), "")


def test_the_commands_of_a_run_know_the_file(tmp_path):
    env = child_environment(RunContext(root=tmp_path, checkout=tmp_path))
    assert env[PROGRESS_VARIABLE] == str(progress_file(tmp_path))


class Server:
    """A server's answers, as the client gives them."""

    def __init__(self):
        self.artifacts = {}
        self.broken = threading.Event()
        self.num_updates = self.num_refused = 0

    @contextmanager
    def client(self, **_):
        yield self

    def create_artifact(self, artifact):
        made = SimpleNamespace(id=uuid4())
        self.artifacts[made.id] = artifact.model_dump()
        return made

    def update_artifact(self, artifact_id, artifact):
        self.artifacts[artifact_id] |= artifact.model_dump(exclude_unset=True)

    def update_progress(self, artifact_id, *, progress, description):
        if self.broken.is_set():
            self.num_refused += 1
            raise OSError("no route to host")
        self.artifacts[artifact_id] |= {"data": progress, "description": description}
        self.num_updates += 1

    def read_artifacts(self, *, artifact_filter, **_):
        keys = artifact_filter.key.any_
        return [SimpleNamespace(id=id_) for id_, one in self.artifacts.items() if one["key"] in keys][:1]


def shown(server):
    """The artifact `progress`."""
    [found] = [one for one in server.artifacts.values() if one["key"] == "progress"]
    return found


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(progress, "get_client", made.client)
    monkeypatch.setattr(progress, "update_progress_artifact", made.update_progress)
    monkeypatch.setattr(progress, "INTERVAL_S", 0.01)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(RUN))
    return made


@pytest.fixture(name="file")
def _file(tmp_path):
    file = progress_file(tmp_path)
    file.parent.mkdir()
    file.write_text(SAID)  # of an earlier run
    return file


SAID = json.dumps({"lines": [], "work": {"line": "ingest: step 2", "done": 2, "total": 8}})


def test_one_artifact_is_updated_in_place(file, server):
    with progress.Progress(file, STAGES) as page:
        assert (shown(server)["data"], shown(server)["flow_run_id"]) == (0.0, RUN)
        page.links["MLflow"] = "http://127.0.0.1:5000/#/x"
        file.write_text(SAID)
        wait_until(lambda: shown(server)["data"] == 25.0)
        words = "stage 1 of 2, ingest: step 2\n* [MLflow](http://127.0.0.1:5000/#/x)"
        assert shown(server)["description"] == words
    assert shown(server)["data"] == 100.0 and len(server.artifacts) == 1


def test_links_and_words_are_shown_as_they_are(file, server):
    hostile = "ingest: <img src=http://x/a.png> ![a](http://x/b.png) [c](javascript:d) \\[e](http://x) **f**"
    with progress.Progress(file) as page:
        page.links |= {"branch": hostile, "MLflow": "http://x/) ![a](http://x/b.png"}
        file.write_text(json.dumps({"work": {"line": hostile}}))
        wait_until(lambda: "ingest" in shown(server)["description"])
        plain = re.sub(r"\\\\|\\[\[\]<>*]", "", shown(server)["description"])
        assert not re.search(r"\]\(|<|\*\*", plain), plain


def test_a_run_that_is_retried_has_one_of_each_artifact_and_says_where_it_ended(file, server):
    for attempt in (1, 2):
        put_markdown("plan", "what run x will do", f"plan {attempt}")
        with pytest.raises(ValueError, match="cancelled"), progress.Progress(file, STAGES):
            file.write_text(SAID)
            wait_until(lambda: shown(server)["description"] == "stage 1 of 2, ingest: step 2")
            raise ValueError("cancelled")
        assert shown(server)["data"] == 25.0
        assert shown(server)["description"] == "ended at stage 1 of 2, ingest: step 2"
        assert len(server.artifacts) == 2


def test_a_server_that_is_unavailable_and_back_again(file, server):
    server.broken.set()
    with progress.Progress(file, STAGES):
        file.write_text(SAID)
        wait_until(lambda: server.num_refused >= 3)
        assert shown(server)["data"] == 0.0
        server.broken.clear()
        wait_until(lambda: shown(server)["data"] == 25.0)


def test_a_server_that_never_answers_holds_the_end_for_seconds_only(file, server, monkeypatch):
    monkeypatch.setattr(progress, "CLOSE_S", 0.2)
    asked, released = threading.Event(), threading.Event()

    def hang(*_, **__):
        asked.set()
        released.wait(200)

    monkeypatch.setattr(progress, "update_progress_artifact", hang)
    with progress.Progress(file, STAGES):
        file.write_text(SAID)
        assert asked.wait(120)
    assert not released.is_set()
    released.set()
