"""`align shard` killed at random moments, in ranges, and with its tars in an object store: always the same bytes."""

import json
from pathlib import Path

import pytest

from align.cli import main
from align.formats.filtered import decisions_digest
from tests.support import small_data
from tests.support.killing import Command, digests, fresh, kill_and_resume, run
from tests.support.params import PARAMS_FILE
from tests.support.small_data import Pair

NUM_IMAGES = 450
ARGUMENTS = (
    "shard", "--params", str(PARAMS_FILE), "--set", "shard.images_per_shard=30",
    "--set", "shard.val_fraction=0.1", "--set", "shard.test_fraction=0.1", "--set", "engine.num_workers=2",
)  # fmt: skip
IN_STORE = ("--set", "store.objects=objects")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/raw of several tars, data/filtered and a passed verdict."""
    root = tmp_path_factory.mktemp("inputs")
    pairs = [Pair(f"picture number {index}", index % NUM_IMAGES) for index in range(NUM_IMAGES + 50)]
    small_data.write(root / "data", pairs, pairs_per_shard=100)
    small_data.write_verdict(root / "reports/quality", passed=True, data=decisions_digest(root / "data/filtered"))
    return root


@pytest.fixture(scope="module")
def expected(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str], float]:
    """Of a whole run: the shards, the report, and its seconds."""
    whole = make_directory(tmp_path_factory.mktemp("whole") / "run", inputs)
    seconds = run(ARGUMENTS, whole)
    return digests(whole / "data/shards"), digests(whole / "reports/shard"), seconds


def make_directory(folder: Path, inputs: Path) -> Path:
    """Makes a working directory with links to the inputs."""
    fresh(folder)
    for name in ("data/raw", "data/filtered", "reports/quality"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(inputs / name)
    return folder


@pytest.mark.costs(3.5, "a run is killed, and resumed in two processes")
def test_killed_shard_resumes_to_the_same_bytes(
    inputs: Path, expected: tuple[dict[str, str], dict[str, str], float], tmp_path: Path
) -> None:
    """At one moment, with worker processes; tests/integration/test_killed_at_writes.py kills it at its writes."""
    shards, report, seconds = expected
    assert sum(name.endswith(".tar") for name in shards) > 10
    killed = make_directory(tmp_path / "killed", inputs)
    kill_and_resume(
        ARGUMENTS, killed, seed=1, num_moments=1, whole_s=seconds, reset=lambda: make_directory(killed, inputs)
    )
    assert digests(killed / "data/shards") == shards
    assert digests(killed / "reports/shard") == report
    assert sorted(path.name for path in (killed / "data").iterdir()) == [".shards.lock", "filtered", "raw", "shards"]


@pytest.mark.parametrize("options", [(), IN_STORE], ids=["here", "store"])
def test_ranges_commute_and_a_missing_one_is_named(
    inputs: Path, expected: tuple[dict[str, str], dict[str, str], float], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...],
) -> None:  # fmt: skip
    shards, report, _ = expected
    last = sum(name.endswith(".tar") for name in shards) - 1
    monkeypatch.chdir(make_directory(tmp_path / "parts", inputs))
    one_worker = (*ARGUMENTS, *options, "--set", "engine.num_workers=1")
    assert main([*one_worker, "--finish"]) == 1
    assert "no work under these parameters, data and code to finish" in capsys.readouterr().err
    for part in (f"2-{last - 1}", "0"):
        assert main([*one_worker, "--shards", part]) == 0
        assert not Path("data/shards").exists()
    capsys.readouterr()
    assert main([*one_worker, "--finish"]) == 1
    assert f"2 of {last + 1} shards are missing: 1, {last};" in capsys.readouterr().err
    for part in (f"{last}-{last + 50}", "1"):
        assert main([*one_worker, "--shards", part]) == 0
    assert main([*one_worker, "--finish"]) == 0
    assert digests(Path("reports/shard")) == report
    if options:
        assert digests(Path("data/shards")) == {name: shards[name] for name in (".align.json", "manifest.json")}
        kept = {Path(name).stem for name in digests(Path("objects"))}
        assert kept == {sha256 for name, sha256 in shards.items() if name.endswith(".tar")}
    else:
        assert digests(Path("data/shards")) == shards


def test_another_parameter_starts_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(make_directory(tmp_path / "again", inputs))
    assert main([*ARGUMENTS, "--set", "engine.num_workers=1", "--shards", "0"]) == 0
    assert main([*ARGUMENTS, "--set", "shard.seed=1", "--finish"]) == 1
    assert "no work under these parameters" in capsys.readouterr().err
    assert main([*ARGUMENTS, "--set", "shard.seed=1", "--set", "engine.num_workers=1", "--shards", "1"]) == 0
    assert [path.name for path in Path("data/.shards.part/.done").iterdir()] == ["00001.json"]
    assert json.loads(Path("data/.shards.part/.plan/plan.json").read_text())["images_per_shard"] == 30


@pytest.mark.costs(3.5, "three ranges at once")
def test_ranges_at_once_give_the_bytes_of_one_run(
    inputs: Path, expected: tuple[dict[str, str], dict[str, str], float], tmp_path: Path
) -> None:
    shards, report, _ = expected
    last = sum(name.endswith(".tar") for name in shards) - 1
    together = make_directory(tmp_path / "together", inputs)
    parts = (f"0-{last}", f"3-{last}", f"1-{last - 2}")  # they overlap, as when a task that still runs is started again
    commands = [Command([*ARGUMENTS, "--shards", part], together) for part in parts]
    for command in commands:
        assert command.ended(120)
        command.require_success()
    run((*ARGUMENTS, "--finish"), together)
    assert digests(together / "data/shards") == shards
    assert digests(together / "reports/shard") == report
