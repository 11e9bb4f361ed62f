"""`align ingest` killed at random moments: the resumed run's bytes equal the uninterrupted run's."""

from pathlib import Path

import pytest

from align.cli import main
from tests.support import ROOT
from tests.support.killing import digests, fresh, kill_and_resume, run

ARGUMENTS = (
    "ingest", "--params", str(ROOT / "params.yaml"), "--set", f"paths.archive={ROOT / 'data/sample/archive.warc.gz'}",
    "--set", "ingest.shard_size=300", "--set", "ingest.max_pages=150",
)  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "num_moments"), [(0, 3), pytest.param(1, 10, marks=pytest.mark.full)], ids=["three", "ten"]
)
def test_killed_ingest_resumes_to_the_same_bytes(tmp_path: Path, seed: int, num_moments: int) -> None:
    whole, killed = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
    seconds = run(ARGUMENTS, whole)
    expected = digests(whole / "data/raw")
    assert sum(name.endswith(".tar") for name in expected) > 3
    kill_and_resume(
        ARGUMENTS, killed, seed=seed, num_moments=num_moments, whole_s=seconds, reset=lambda: fresh(killed)
    )  # fmt: skip
    assert digests(killed / "data/raw") == expected
    assert digests(killed / "reports/ingest") == digests(whole / "reports/ingest")
    left = sorted(path.name for path in (killed / "data").iterdir())
    assert left == [".raw.lock", "raw"]


def test_ranges_commute_and_a_missing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = fresh(tmp_path / "whole"), fresh(tmp_path / "parts")
    monkeypatch.chdir(whole)
    one_worker = (*ARGUMENTS, "--set", "engine.num_workers=1")
    assert main(list(one_worker)) == 0
    expected = digests(whole / "data/raw")
    last = max(int(name.split(".")[0]) for name in expected if name.endswith(".tar"))
    monkeypatch.chdir(parts)
    for shards in (f"2-{last - 1}", "0"):
        assert main([*one_worker, "--shards", shards]) == 0
        assert not (parts / "data/raw").exists()
    capsys.readouterr()
    assert main([*one_worker, "--finish"]) == 1
    assert f"2 of {last + 1} shards are missing: 1, {last};" in capsys.readouterr().err
    for shards in (str(last), "1"):
        assert main([*one_worker, "--shards", shards]) == 0
    assert main([*one_worker, "--finish"]) == 0
    assert digests(parts / "data/raw") == expected


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
