"""`align ingest` killed at random moments: the resumed run's bytes equal the uninterrupted run's."""

import json
from pathlib import Path

import pytest

from align.cli import main
from tests.support import ROOT
from tests.support.killing import digests, fresh, kill_and_resume, run
from tests.support.params import PARAMS_FILE
from tests.support.warc_records import picture
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

ARGUMENTS = (
    "ingest", "--params", str(PARAMS_FILE), "--set", f"paths.archive={ROOT / 'data/sample/archive.warc.gz'}",
    "--set", "ingest.shard_size=75", "--set", "ingest.max_pages=38",
)  # fmt: skip


@pytest.mark.costs(4.5, "a whole run, one that is killed and its rest")
def test_killed_ingest_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """At one moment, with worker processes; tests/integration/test_killed_at_writes.py kills it at its writes."""
    whole, killed = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
    seconds = run(ARGUMENTS, whole)
    expected = digests(whole / "data/raw")
    assert sum(name.endswith(".tar") for name in expected) > 3
    kill_and_resume(ARGUMENTS, killed, seed=1, num_moments=1, whole_s=seconds, reset=lambda: fresh(killed))
    assert digests(killed / "data/raw") == expected
    assert digests(killed / "reports/ingest") == digests(whole / "reports/ingest")
    left = sorted(path.name for path in (killed / "data").iterdir())
    assert left == [".raw.lock", "raw"]


def test_two_runs_at_once_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/.raw.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(list(ARGUMENTS)) == 1
    assert "another process is making it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".raw.lock"]


def test_a_killed_download_asks_for_no_hopeless_picture_and_makes_the_same_bytes(tmp_path: Path) -> None:
    """From a server, where only pictures of which a text can pass are fetched."""
    with WebServer() as server:
        server.fallback = answer(picture(300, 250, "red"))
        texts = ["a text that can pass", "logo", "", "one more text to keep"]
        lines = [{"url": server.url(f"/{row // 2}"), "caption": texts[row * 7 % 4]} for row in range(1000)]
        (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        arguments = (
            "ingest", "--params", str(PARAMS_FILE), "--set", "ingest.source=url_table",
            "--set", f"paths.archive={tmp_path / 'table.jsonl'}", "--set", "download.allow_networks=[127.0.0.0/8]",
            "--set", "ingest.shard_size=100", "--set", "engine.num_workers=1", "--set", "download.obey_robots=false",
        )  # fmt: skip
        whole, killed = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
        seconds = run(arguments, whole)
        kill_and_resume(
            arguments, killed, seed=0, num_moments=1, whole_s=seconds, reset=lambda: fresh(killed)
        )  # fmt: skip
        asked = {path.rpartition("/")[2] for path in server.requests}
    assert digests(killed / "data/raw") == digests(whole / "data/raw")
    can_pass = {line["url"].rpartition("/")[2] for line in lines if len(line["caption"].split()) >= 3}
    assert asked == can_pass and 0 < len(can_pass) < 500
