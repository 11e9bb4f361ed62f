"""The page of a run: what a stage writes for it, and that no server can slow or fail a run by it."""

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
from flows.pages.progress import RunPage, at_stage, bar, page_markdown, put_markdown, run_page
from flows.tasks.run_context import RunContext, child_environment, progress_file
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


def test_the_bar_is_that_of_the_stage_that_runs():
    work = Work(line="fit_tokenizer: 1 of 4", done=1, total=4)
    assert bar(at_stage(work, "fit_tokenizer", STAGES)) == f"{'█' * 5}{'░' * 15} 25 % stage 2 of 2, {work.line}"
    # the next stage has said nothing yet, and the last one's end says nothing of it
    left = Work(line="ingest: 9 of 9", done=9, total=9)
    assert at_stage(left, "fit_tokenizer", STAGES) == Work(line="stage 2 of 2, fit_tokenizer")
    assert bar(at_stage(Work(), "ingest", STAGES)) == "stage 1 of 2, ingest"
    assert bar(Work(line="x", done=0, total=3)).startswith("░" * 20) and "█" * 20 in bar(Work(done=3, total=3))


def test_the_commands_of_a_run_know_the_file(tmp_path):
    env = child_environment(RunContext(root=tmp_path, checkout=tmp_path))
    assert env[PROGRESS_VARIABLE] == str(progress_file(tmp_path))


def test_the_page_has_states_reports_links_and_lines():
    report = uuid4()
    states = {"ingest": "Cached", "fit_tokenizer": "Running"}
    links = {"MLflow": "http://127.0.0.1:5000/#/x", "branch": "run/x"}
    text = page_markdown(STAGES, states, {"ingest": report}, ["~~~~", "last line"], links)
    assert f"| ingest | cached | [report](../artifact/{report}) | what ingest does |" in text
    assert "| fit_tokenizer | **runs** |  | what" in text
    assert "* [MLflow](http://127.0.0.1:5000/#/x)\n* branch: run/x" in text
    hostile = "ingest: <img src=http://x/a.png> ![a](http://x/b.png) [c](javascript:d) \\[e](http://x) **f**"
    links = {"branch": hostile, "MLflow": "http://x/) ![a](http://x/b.png"}
    for shown in (page_markdown(STAGES, {}, {}, [], links, hostile), page_markdown(STAGES, {}, {}, [hostile], {})):
        plain = re.sub(r"~~~~.*~~~~", "", re.sub(r"\\\\|\\[\[\]<>*]", "", shown), flags=re.DOTALL)
        assert not re.search(r"\]\(|<|\*\*", plain), plain
    assert text.endswith("\nlast line\n~~~~") and text.count("~~~~") == 2  # what is printed cannot end the block


class Server:
    """A server's answers, as the client gives them."""

    def __init__(self):
        self.artifacts = {}
        self.broken = threading.Event()
        self.num_updates = self.num_refused = 0
        self.states = ["Crashed", "Running"]  # of ingest, in its attempts
        self.reports = uuid4(), uuid4()  # of the second attempt and of the first

    @contextmanager
    def client(self, **_):
        self._answer()
        yield self

    def _answer(self):
        if self.broken.is_set():
            self.num_refused += 1
            raise OSError("no route to host")

    def create_artifact(self, artifact):
        self._answer()
        made = SimpleNamespace(id=uuid4())
        self.artifacts[made.id] = artifact.model_dump()
        return made

    def update_artifact(self, artifact_id, artifact):
        self._answer()
        self.artifacts[artifact_id] |= artifact.model_dump(exclude_unset=True)
        self.num_updates += 1

    def read_task_runs(self, *, sort, **_):
        assert sort == "EXPECTED_START_TIME_ASC"
        return [SimpleNamespace(name="ingest", state=SimpleNamespace(name=name)) for name in self.states]

    def read_artifacts(self, *, artifact_filter, sort="", **_):
        self._answer()
        if artifact_filter.key:
            made = [
                SimpleNamespace(id=id_) for id_, one in self.artifacts.items() if one["key"] in artifact_filter.key.any_
            ]
            return made[:1]
        assert sort == "CREATED_DESC"
        return [SimpleNamespace(key="fit-tokenizer-report", id=id_) for id_ in self.reports]


def shown(server):
    """Key -> artifact."""
    return {one["key"]: one for one in server.artifacts.values()}


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(progress, "get_client", made.client)
    monkeypatch.setattr(progress, "INTERVAL_S", 0.01)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(RUN))
    return made


def test_two_artifacts_are_updated_in_place(tmp_path, server):
    file = progress_file(tmp_path)
    file.parent.mkdir()
    file.write_text(json.dumps({"lines": ["of an earlier run"]}))
    with run_page("x") as page:
        page.watch(progress_file(tmp_path), STAGES)
        wait_until(lambda: len(server.artifacts) == 2)
        assert (
            shown(server)["progress"] | {"data": 0.0, "description": "stage 1 of 2, ingest"}
            == shown(server)["progress"]
        )
        assert "earlier run" not in shown(server)["run"]["data"]
        words = {"line": "ingest: step 2", "done": 2, "total": 8}
        file.write_text(json.dumps({"lines": ["ingest: step 2"], "work": words}))
        wait_until(lambda: any(one["data"] == 25.0 for one in server.artifacts.values()))
        assert shown(server)["progress"]["description"] == "stage 1 of 2, ingest: step 2"
        wait_until(lambda: "25 % stage 1 of 2, ingest: step 2" in shown(server)["run"]["data"])
        page.links["branch"] = "run/x"
    by_key = shown(server)
    assert by_key.keys() == {"run", "progress"} and len(server.artifacts) == 2
    assert all(one["flow_run_id"] == RUN for one in by_key.values())
    assert by_key["progress"]["data"] == 100.0 and "run/x" in by_key["run"]["data"]
    assert f"fit_tokenizer |  | [report](../artifact/{server.reports[0]})" in by_key["run"]["data"]
    assert "| ingest | **runs** |" in by_key["run"]["data"]  # as of the newest attempt


def test_a_run_that_is_retried_has_one_of_each_artifact_and_one_that_fails_keeps_its_last_lines(tmp_path, server):
    file = progress_file(tmp_path)
    file.parent.mkdir()
    said = json.dumps({"lines": ["ingest: step 2"], "work": {"line": "ingest: step 2", "done": 2, "total": 8}})
    for attempt in (1, 2):
        server.states = ["Running"]
        put_markdown("plan", "what run x will do", f"plan {attempt}")
        with pytest.raises(ValueError, match="cancelled"), run_page("x") as page:
            page.watch(progress_file(tmp_path), STAGES)
            file.write_text(said)
            wait_until(lambda: shown(server).get("progress", {}).get("description") == "stage 1 of 2, ingest: step 2")
            server.states = ["Crashed"]  # as its task is when the run is cancelled
            raise ValueError("cancelled")
        found = shown(server)
        assert found.keys() == {"plan", "run", "progress"} and len(server.artifacts) == 3
        assert found["plan"]["data"] == f"plan {attempt}"
        assert found["progress"]["data"] == 25.0
        assert found["progress"]["description"] == "ended at stage 1 of 2, ingest: step 2"
        assert found["run"]["data"].endswith("~~~~\ningest: step 2\n~~~~")
    with run_page("x") as page:
        page.watch(progress_file(tmp_path), STAGES)
    assert len(server.artifacts) == 3 and shown(server)["progress"]["data"] == 100.0


def test_a_server_that_is_unavailable_and_back_again(tmp_path, server):
    progress_file(tmp_path).parent.mkdir()
    server.broken.set()
    with run_page("x") as page:
        page.watch(progress_file(tmp_path), STAGES)
        wait_until(lambda: server.num_refused >= 3)
        assert not server.artifacts
        server.broken.clear()
        wait_until(lambda: server.artifacts)
        server.broken.set()
        page.links["branch"] = "run/x"
        refused = server.num_refused
        wait_until(lambda: server.num_refused >= refused + 3)
        server.broken.clear()
        wait_until(lambda: server.num_updates)
        server.broken.set()


def test_a_server_that_never_answers_holds_the_end_for_seconds_only(tmp_path, server, monkeypatch):
    progress_file(tmp_path).parent.mkdir()
    monkeypatch.setattr(progress, "CLOSE_S", 0.2)
    asked, released, answered = threading.Event(), threading.Event(), threading.Event()

    def hang(**_):
        asked.set()
        released.wait(200)
        answered.set()
        return []

    monkeypatch.setattr(server, "read_task_runs", hang)
    page = RunPage("x")
    page.watch(progress_file(tmp_path), STAGES)
    assert asked.wait(120)
    page.close()
    assert not answered.is_set()
    released.set()


def test_a_run_that_fails_before_its_page_begins(server):
    with pytest.raises(ValueError, match="first"), run_page("x"):
        raise ValueError("first")
    assert not server.artifacts
