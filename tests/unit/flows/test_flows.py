"""Flows without a server: supervised children, git plumbing, locks, and what people read."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align.durable.locks import locked
from align.errors import ConfigError, DataError
from align.services.git import changes, git
from flows.checkout.run_branch import Recorded
from flows.checkout.workspace import in_worktree
from flows.dag import Selection, Stage, select
from flows.pages import summary
from flows.pages.summary import summarise
from flows.request import Request
from flows.tasks.child_process import CommandError, run_supervised
from flows.tasks.run_context import RunContext
from flows.tasks.stage_task import StageOutcome, did_run, report_markdown
from tests.support import ROOT, small_git

STORE = "store:\n  features: .align/features\n"
PARAMS = f"paths:\n  checkpoints: checkpoints # where\n{STORE}filter:\n  min_words: 3 # paper 3\n"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A git and DVC repository with one source file and params.yaml, everything committed."""
    files = {
        "align/project/code.py": "x = 1\n", "params.yaml": PARAMS, ".gitignore": ".align/\n",
        ".dvc/config": "[core]\n    analytics = false\n", ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    }  # fmt: skip
    return small_git.write(tmp_path / "repo", files)


def test_a_child_s_output_comes_line_by_line(tmp_path: Path) -> None:
    heard: list[str] = []
    lines = run_supervised(["sh", "-c", "echo out; echo err >&2"], cwd=tmp_path, env=os.environ, log=heard.append)
    assert sorted(lines) == ["err", "out"]
    assert heard == lines


def test_a_child_s_output_shows_no_login(tmp_path: Path) -> None:
    heard: list[str] = []
    script = "echo pushing to https://me:secret@host/repo; exit 1"
    with pytest.raises(CommandError, match=r"pushing to https://host/repo$"):
        run_supervised(["sh", "-c", script], cwd=tmp_path, env=os.environ, log=heard.append)
    assert heard == ["pushing to https://host/repo"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'align: error: nothing kept'; echo 'ERROR: failed to reproduce'; exit 1", "failed: nothing kept"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "ended by SIGKILL"),
    ],
)
def test_a_failed_child_says_why(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        run_supervised(["sh", "-c", script], cwd=tmp_path, env=os.environ, log=lambda line: None)


#: As under DVC: a parent that dies of SIGTERM at once, above a trainer in a session of its own that saves first.
TRAINER = """
import pathlib, signal, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "train"], start_new_session=False)
def save(*_):
    time.sleep(0.3)
    pathlib.Path("checkpoint").write_text("step 7")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path("pid").write_text(str(__import__("os").getpid()))
print("training", flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody reaps has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_interrupted_the_trainer_saves_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)

    def interrupt(line: str) -> None:
        if line == "training":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_supervised([sys.executable, "trainer.py"], cwd=tmp_path, env=os.environ, log=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "checkpoint").read_text() == "step 7"
    assert gone(int((tmp_path / "pid").read_text()))


def test_killed_the_flow_leaves_no_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    flow = (
        "import os, sys; from pathlib import Path; from flows.tasks.child_process import run_supervised\n"
        "run_supervised([sys.executable, 'trainer.py'], cwd=Path.cwd(), env=os.environ, log=lambda line: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", flow], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)
    assert (tmp_path / "checkpoint").read_text() == "step 7"


def test_a_worktree_of_its_own(repo: Path) -> None:
    request = Request(name="x", overrides={"filter.min_words": 4})
    with in_worktree(repo, request, log=lambda line: None) as workspace:
        assert workspace.root != repo and not workspace.dirty
        assert (workspace.root / "params.yaml").read_text() == PARAMS.replace("3 #", "4 #")  # comments stay
        (workspace.root / "checkpoints" / "step").write_text("7")
        (workspace.root / ".align/features/seen").touch()
        config = (workspace.root / ".dvc/config.local").read_text()
        assert str(repo / ".dvc" / "cache") in config
    assert not workspace.root.exists()
    assert (repo / "checkpoints" / "step").read_text() == "7"  # survives, so that a cancelled run resumes
    assert (repo / ".align/features/seen").exists()
    assert (repo / "params.yaml").read_text() == PARAMS


def test_a_dirty_checkout_is_refused_or_snapshotted(repo: Path) -> None:
    (repo / "dvc.lock").write_text("schema: '2.0'\n")  # a result, not a change
    assert changes(repo) == []
    (repo / "align/project/code.py").write_text("x = 3\n")
    with pytest.raises(DataError, match=r"align/project/code\.py"), in_worktree(repo, Request(), log=print):
        pass
    with in_worktree(repo, Request(snapshot_dirty=True), log=lambda line: None) as workspace:
        assert workspace.dirty
        assert (workspace.root / "align/project/code.py").read_text() == "x = 3\n"
    with in_worktree(repo, Request(ref="HEAD~0"), log=lambda line: None) as workspace:
        assert (workspace.root / "align/project/code.py").read_text() == "x = 1\n"
    with (
        pytest.raises(DataError, match="'nowhere' names no commit"),
        in_worktree(repo, Request(ref="nowhere"), log=print),
    ):
        pass


def test_an_unknown_override_makes_no_worktree(repo: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"filter\.words"),
        in_worktree(repo, Request(overrides={"filter.words": 5}), log=lambda line: None),
    ):
        pass


@pytest.mark.parametrize(
    "key, value",
    [
        ("checkpoints", "/home/person/work"),
        ("checkpoints", "../../person"),
        ("checkpoints", "data/../../person"),
        ("checkpoints", "."),
    ],
)
def test_a_run_writes_in_its_own_tree_only(repo: Path, key: str, value: str) -> None:
    request = Request(overrides={f"paths.{key}": value})
    with (
        pytest.raises(ConfigError, match=rf"paths\.{key} = .*writes there only"),
        in_worktree(repo, request, log=lambda line: None),
    ):
        pass


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    lock, order = tmp_path / "lock", []
    with locked(lock, "run 'a'", order.append):
        second = threading.Thread(target=lambda: _hold(lock, order))
        second.start()
        deadline = time.monotonic() + 60
        while not order and time.monotonic() < deadline:
            time.sleep(0.01)
        assert order[0].startswith("waiting for run 'a'")
        order.append("first ends")
    second.join(60)
    assert order[1:] == ["first ends", "second holds"]


def _hold(lock: Path, order: list[str]) -> None:
    with locked(lock, "run 'b'", order.append):
        order.append("second holds")


def test_what_the_release_does_not_read_is_not_run() -> None:
    upstream = {"shard": (), "fit_tokenizer": ("shard",), "pretrain": ("fit_tokenizer",), "finetune": ("shard",)}
    stages = [Stage(name, name, "training", (), (), reads, name) for name, reads in upstream.items()]
    release = Stage("package", "package", "release", (), (), ("finetune",), "package")
    assert {one.name for one in select([*stages, release]).stages} == {"shard", "finetune", "package"}  # of an import
    assert {one.name for one in select(stages).stages} == set(upstream)


def test_did_run_by_dvc_s_words() -> None:
    assert did_run("filter", ["Running stage 'filter':", "> align filter"])
    assert not did_run("filter", ["Stage 'filter' is cached - skipping run, checking out outputs"])
    assert not did_run("filter", ["Stage 'filter' didn't change, skipping", "Running stage 'filters':"])


RECORDED = Recorded("demo", "0" * 40, is_new=True)


def stage(name: str) -> Stage:
    return Stage(name, f"what {name} does", "data", (), (), (), f"reports/{name}")


def report(root: Path, name: str, metrics: dict[str, float], **content: object) -> None:
    folder = root / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report.json").write_text(json.dumps(content))


def test_the_summary_reads_the_reports(tmp_path: Path) -> None:
    report(tmp_path, "ingest", {"ingest/num_pairs": 1000})
    report(tmp_path, "filter", {"filter/num_kept": 600, "filter/dropped/text_too_short": 300, "filter/dropped/x": 0})
    recalls = {f"concepts/image_to_text/recall@{k}": k / 20 for k in (1, 5, 10)}
    chances = {f"{name}/chance": 0.02 for name in recalls}
    zero_shot = {
        "classes/zero_shot/accuracy": 0.2,
        "classes/zero_shot/accuracy/chance": 0.04,
        "classes/zero_shot/accuracy/majority": 0.1,
    }
    report(tmp_path, "evaluate", recalls | chances | zero_shot)
    found = [{"score": 0.5, "right": True, "texts": ["a red heart"]}]
    report(tmp_path, "index", {}, queries=[{"query": f"query {i}", "found": found} for i in range(5)])
    stages = [stage(name) for name in ("ingest", "filter", "evaluate", "index")]
    outcomes = [StageOutcome(stage=s.name, ran=s.name == "filter") for s in stages]
    run = RunContext(root=tmp_path, checkout=tmp_path, name="demo", chosen=Selection(asked=tuple(stages)))
    text = summarise(run, outcomes, RECORDED, "align version 3")
    assert "1 stages ran (filter), 3 came from the cache" in text
    assert "1,000 in, 600 kept (60.0%)" in text and "300  text_too_short" in text
    assert "  x" not in text.split("Retrieval")[0]  # rules that dropped nothing are left out
    row = next(line for line in text.splitlines() if "concepts/image_to_text" in line)
    assert row.split()[1:] == ["5.0%", "(2.0%)", "25.0%", "(2.0%)", "50.0%", "(2.0%)"]
    assert "Zero-shot accuracy (classes): 20.0%; chance 4.0%, majority rate 10.0%" in text
    assert "align version 3" in text and "align compare demo ." in text and "dvc metrics diff" not in text
    assert text.count("red heart") == 3  # three examples
    assert 'align search "query 0" --html hits.html' in text

    report(tmp_path, "index", {}, queries=[])  # of a project that has no labelled queries yet
    text = summarise(run, outcomes, RECORDED, "align version 3")
    assert 'align search "your words" --html hits.html' in text and "Searches:" not in text


def test_the_summary_says_how_to_activate_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(tmp_path, "evaluate", {})

    run = RunContext(root=tmp_path, checkout=tmp_path, name="a b", chosen=Selection(asked=(stage("evaluate"),)))

    def look_around() -> list[str]:
        text = summarise(run, [], Recorded("a b", "0", is_new=True), "")
        return text.split("Look around:\n")[1].splitlines()

    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert look_around()[0].startswith("  . .venv/bin/activate  ")
    assert "  align compare 'a b' .  " in "\n".join(look_around())
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "other"))
    assert look_around()[0].startswith("  . .venv/bin/activate  ")
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert look_around()[0].startswith("  make up  ")
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # installed without an environment
    assert look_around()[0].startswith("  make up  ")


def test_git_ignores_what_the_summary_tells_people_to_create() -> None:
    made = [*re.findall(r"--html (\S+)", summary.HERE + summary.ELSEWHERE), "dvc_plots/"]
    assert made == ["hits.html", "dvc_plots/"] and "dvc plots show" in summary.HERE
    for name in made:
        assert git(ROOT, "check-ignore", name) == name


def test_a_report_shows_metrics_and_pictures(tmp_path: Path) -> None:
    report(tmp_path, "filter", {"filter/num_kept": 1234, "filter/keep_rate": 0.5, "[x](http://x) | y": 2})
    (tmp_path / "reports/filter/funnel.png").write_bytes(b"\x89PNG")
    text = report_markdown(tmp_path / "reports/filter", stage("filter"), "~~~~\n<b>")
    assert text.count("~~~~") == 2 and r"| \[x\](http://x) \| y | 2 |" in text
    assert "| filter/num_kept | 1,234 |" in text and "| filter/keep_rate | 0.5 |" in text
    assert "![funnel](data:image/png;base64,iVBORw==)" in text


def test_pictures_of_a_report_fit_into_an_event_of_prefect(tmp_path: Path) -> None:
    """The largest are named instead; what is shown has fewer colours."""
    report(tmp_path, "filter", {"filter/num_kept": 1})
    noise = np.random.default_rng(0)
    for name, side in (("examples", 400), ("large", 1000), ("more", 800)):
        picture = Image.fromarray(noise.integers(0, 255, (side, side, 3), dtype=np.uint8))
        picture.save(tmp_path / f"reports/filter/{name}.png")
    text = report_markdown(tmp_path / "reports/filter", stage("filter"))
    assert len(text) < 1_500_000 and "\n\nlarge.png: " in text and "see filter/ in the checkout" in text
    shown = re.findall(r"!\[(\w+)\]\(data:image/png;base64,([^)]+)\)", text)
    assert [name for name, _ in shown] == ["examples", "more"]
    for (_, data), side in zip(shown, (400, 800), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (side, side) and picture.mode == "P"
