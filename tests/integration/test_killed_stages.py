"""Ingest, filter and shard, killed at a random moment with worker processes: always the same bytes.

tests/integration/test_killed_at_writes.py kills them at each of their writes.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.errors import DataError
from align.formats.filtered import decisions_digest
from tests.support import ROOT, killing, small_data, warm
from tests.support.killing import digests, fresh, kill_and_resume, run
from tests.support.params import PARAMS_FILE, at, sets
from tests.support.reading import url_table
from tests.support.small_data import Pair
from tests.support.small_filter import evaluation_set, noise, shards, stock_folder
from tests.support.warc_records import picture
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

NUM_IMAGES = 450
SHARD = (
    "shard", "--params", str(PARAMS_FILE), "--set", "shard.images_per_shard=30",
    "--set", "shard.val_fraction=0.1", "--set", "shard.test_fraction=0.1", "--set", "engine.num_workers=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """data/raw of several tars, data/filtered and a passed verdict."""
    root = tmp_path_factory.mktemp("inputs")
    pairs = [Pair(f"picture number {index}", index % NUM_IMAGES) for index in range(NUM_IMAGES + 50)]
    small_data.write(root / "data", pairs, pairs_per_shard=100)
    small_data.write_verdict(root / "reports/quality", passed=True, data=decisions_digest(root / "data/filtered"))
    return root


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """Of a whole run: the shards, the report, and its seconds."""
    whole = make_directory(tmp_path_factory.mktemp("whole") / "run", inputs)
    seconds = run(SHARD, whole)
    return digests(whole / "data/shards"), digests(whole / "reports/shard"), seconds


def make_directory(folder, inputs):
    """Makes a working directory with links to the inputs."""
    fresh(folder)
    for name in ("data/raw", "data/filtered", "reports/quality"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(inputs / name)
    return folder


def test_killed_shard_resumes_to_the_same_bytes(inputs, expected, tmp_path):
    shards, report, seconds = expected
    assert sum(name.endswith(".tar") for name in shards) > 10
    killed = make_directory(tmp_path / "killed", inputs)
    kill_and_resume(SHARD, killed, seed=1, num_moments=1, whole_s=seconds, reset=lambda: make_directory(killed, inputs))
    assert digests(killed / "data/shards") == shards
    assert digests(killed / "reports/shard") == report
    assert sorted(path.name for path in (killed / "data").iterdir()) == [".shards.lock", "filtered", "raw", "shards"]


def test_tars_in_an_object_store_have_the_same_bytes(inputs, expected, tmp_path, monkeypatch):
    shards, report, _ = expected
    monkeypatch.chdir(make_directory(tmp_path / "stored", inputs))
    assert main([*SHARD, *sets("store.objects=objects", "engine.num_workers=1")]) == 0
    assert digests(Path("reports/shard")) == report
    assert digests(Path("data/shards")) == {name: shards[name] for name in shards if not name.endswith(".tar")}
    kept = {Path(name).stem for name in digests(Path("objects"))}
    assert kept == {sha256 for name, sha256 in shards.items() if name.endswith(".tar")}


def test_another_parameter_starts_again(inputs, tmp_path, monkeypatch, capsys):
    def cut_off(*_):
        raise DataError("cut off")

    monkeypatch.chdir(make_directory(tmp_path / "again", inputs))
    monkeypatch.setattr("align.shard.shard.finish", cut_off)
    for seed, num_discarded in (("0", 0), ("0", 0), ("1", 1)):
        assert main([*SHARD, *sets("engine.num_workers=1", f"shard.seed={seed}")]) == 1
        assert capsys.readouterr().err.count("discarding the work of an earlier run") == num_discarded


INGEST = (
    "ingest", "--params", str(PARAMS_FILE), "--set", f"paths.archive={ROOT / 'data/sample/archive.warc.gz'}",
    "--set", "ingest.shard_size=75", "--set", "ingest.max_pages=38",
)  # fmt: skip


def test_killed_ingest_resumes_to_the_same_bytes(tmp_path):
    whole, killed = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
    seconds = run(INGEST, whole)
    expected = digests(whole / "data/raw")
    assert sum(name.endswith(".tar") for name in expected) > 3
    kill_and_resume(INGEST, killed, seed=1, num_moments=1, whole_s=seconds, reset=lambda: fresh(killed))
    assert digests(killed / "data/raw") == expected
    assert digests(killed / "reports/ingest") == digests(whole / "reports/ingest")
    left = sorted(path.name for path in (killed / "data").iterdir())
    assert left == [".raw.lock", ".raw.scan", "raw"]


def test_two_runs_at_once_are_refused(tmp_path, monkeypatch, capsys):
    import fcntl

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/.raw.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(list(INGEST)) == 1
    assert "another process is making it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".raw.lock"]


def test_a_killed_download_asks_for_no_hopeless_picture_and_makes_the_same_bytes(tmp_path):
    """From a server, where only pictures of which a text can pass are fetched."""
    with WebServer() as server:
        server.fallback = answer(picture(300, 250, "red"))
        texts = ["a text that can pass", "logo", "", "one more text to keep"]
        rows = [(server.url(f"/{row // 2}"), texts[row * 7 % 4]) for row in range(1000)]
        arguments = ["ingest", "--params", str(PARAMS_FILE), *sets(
            "ingest.source=url_table", f"paths.archive={url_table(tmp_path, rows)}", "ingest.shard_size=100",
            "download.allow_networks=[127.0.0.0/8]", "engine.num_workers=1", "download.obey_robots=false",
        )]  # fmt: skip
        whole, killed = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
        seconds = run(arguments, whole)
        kill_and_resume(arguments, killed, seed=0, num_moments=1, whole_s=seconds, reset=lambda: fresh(killed))
        asked = {path.rpartition("/")[2] for path in server.requests}
    assert digests(killed / "data/raw") == digests(whole / "data/raw")
    can_pass = {url.rpartition("/")[2] for url, text in rows if len(text.split()) >= 3}
    assert asked == can_pass and 0 < len(can_pass) < 500


SETTINGS = ("filter.num_frequent_ngrams=60", "engine.num_workers=2", "engine.memory_limit=200MB")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the inputs and a whole run's results in `whole`; and its seconds."""
    root = tmp_path_factory.mktemp("filter")
    shards(root / "raw", 6)
    evaluation_set(root / "evaluation", noise(2))
    return root, killing.run(command(root, root / "whole"), root)


def command(inputs, out, *more):
    """The words of `align` that filter these inputs."""
    folders = at(out, "filtered", "reports", "runtime") + at(inputs, "raw", "evaluation", "policy")
    return ["filter", *sets(*SETTINGS, *folders), *more]


def require_equal(root, whole):
    for folder in ("filtered", "reports"):
        expected = killing.digests(whole / "whole" / folder)
        assert expected
        assert killing.digests(root / folder) == expected


@pytest.mark.kill
def test_a_killed_filter_resumes_and_writes_the_same_bytes(tmp_path, whole):
    inputs, whole_s = whole
    killing.kill_and_resume(
        command(inputs, tmp_path / "killed"), tmp_path, seed=3, num_moments=1, whole_s=whole_s,
        reset=lambda: shutil.rmtree(tmp_path / "killed"),
    )  # fmt: skip
    require_equal(tmp_path / "killed", inputs)
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        ".filtered.lock", "filtered", "reports", "runtime",
    }  # fmt: skip


#: Runs the command with the code as it is now, which a fork has not imported.
EDITED = """
import sys

for name in [name for name in sys.modules if name.partition(".")[0] == "align"]:
    del sys.modules[name]
from align.cli import main
from align.errors import DataError

sys.exit(main(sys.argv[1:]))
"""
#: And ends it like kill -9 when all images are scored and nothing is decided.
KILLED = """
import os, signal
from align.filter import filter as stage

stage.decide = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = EDITED.replace("from align.cli", f"{KILLED}from align.cli")
RULE, OTHER_RULE = 'return f"num_words < {config.min_words}"', 'return f"num_words < {config.min_words + 1}"'


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path.name}: {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new), "utf-8")


@pytest.mark.kill
def test_a_killed_filter_resumes_after_a_reworded_line_and_starts_again_after_an_edited_rule(tmp_path):
    """With a copy of the package, whose code is edited between the runs."""
    code = tmp_path / "code/align"
    shutil.copytree(ROOT / "align", code, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PARAMS_FILE, tmp_path)
    pairs = [("three words here", noise(0)), ("and four words here", noise(1)), ("two words", noise(2))]
    stock_folder(tmp_path / "raw", [*pairs])
    (tmp_path / "evaluation").mkdir()
    folders = at(tmp_path, "raw", "evaluation", "policy", "filtered", "reports", "runtime")
    words = ["filter", *sets(*folders, "engine.num_workers=1", "engine.memory_limit=200MB")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(code):
        arguments = [warm.commands() / "python", "-c", code, *words]
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    def files():
        work = tmp_path / ".filtered.part"
        names = ("measured/00000/pairs.parquet", "scored/00000/scored.parquet", "judged/verdicts.parquet")
        return {name: (work / name).stat().st_ino for name in names}

    killed = run(KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "filter: SQL, rules" in killed.stderr
    first = files()

    edit(code / "filter/filter.py", 'say("filter: SQL, rules")', 'say("filter: the cheap rules")  # reworded')
    edit(
        code / "filter/rules.py", '"""T3: fewer than 3 unigrams; 2 are dropped, 3 kept."""', '"""T3: too few words."""'
    )
    resumed = run(KILLED)
    assert resumed.returncode == -signal.SIGKILL, resumed.stderr
    assert "SQL" not in resumed.stderr and "cheap rules" not in resumed.stderr
    assert files() == first  # nothing was measured, judged or scored again

    edit(code / "filter/rules.py", RULE, OTHER_RULE)
    done = run(EDITED)
    assert done.returncode == 0, done.stderr
    assert "filter: the cheap rules" in done.stderr
    table = pq.read_table(tmp_path / "filtered/decisions", columns=["text", "keep"])
    assert dict(zip(*table.to_pydict().values(), strict=True)) == {
        "three words here": False, "and four words here": True, "two words": False,
    }  # fmt: skip
