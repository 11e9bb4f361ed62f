"""Ranges on machines that share nothing but an S3 server: one is lost, the server is down, bytes are damaged."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from align.cli import main
from align.errors import AlignError, CorruptError
from align.formats.filtered import decisions_digest
from align.formats.shards import read_manifest
from align.services.store_work import SmallObjects, StoreWork, open_work
from tests.support import ROOT, local_store, small_data, small_filter, wait_until, warm
from tests.support.killing import digests, fresh
from tests.support.params import PARAMS_FILE, at, sets
from tests.support.s3_server import S3Server, serve
from tests.support.small_data import Pair

#: As `align`, but a lost machine's work is taken over soon; and where HANG names a file, shard 00002 makes that file
#: and takes until it is gone.
PROGRAM = """
import os, sys, time
import align.ingest.workers as workers
import align.services.store_work as store_work
from align.cli import main

store_work.LEASE_S = 6.0
write = workers.write_shard

def hang(directory, shard, *rest, **more):
    if shard.name == "00002":
        open(os.environ["HANG"], "w").close()
        while os.path.exists(os.environ["HANG"]):
            time.sleep(0.1)
    return write(directory, shard, *rest, **more)

if "HANG" in os.environ:
    workers.write_shard = hang
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        running.make_bucket("crawl")
        with closing(running._client()) as s3:
            s3.upload_file(str(ROOT / "data/sample/archive.warc.gz"), "crawl", "archive.warc.gz")
        yield running


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.use(monkeypatch)


class Machines:
    """Folders that share nothing, in which `align ingest` runs."""

    def __init__(self, root: Path, work: str) -> None:
        self._root = root
        self._arguments = (
            "ingest", "--params", str(PARAMS_FILE),
            *sets("paths.archive=s3://crawl/archive.warc.gz", "ingest.shard_size=30", "ingest.max_pages=75",
                  "engine.num_workers=1", "store.num_retries=2", f"store.work=s3://{work}"),
        )  # fmt: skip

    def folder(self, name: str) -> Path:
        return self._root / name if (self._root / name).exists() else fresh(self._root / name)

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [str(warm.commands() / "python"), "-c", PROGRAM, *self._arguments, *arguments]
        return subprocess.Popen(
            command, cwd=self.folder(name), env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, name: str, *arguments: str, code: int = 0) -> str:
        process = self.start(name, *arguments)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        return errors


def whole_run(machines: Machines) -> tuple[dict[str, str], int]:
    machines.run("whole")
    expected = digests(machines.folder("whole") / "data/raw")
    return expected, max(int(name.split(".")[0]) for name in expected if name.endswith(".tar"))


@pytest.mark.full
def test_a_lost_machines_range_is_taken_over(server: S3Server, tmp_path: Path) -> None:
    machines = Machines(tmp_path, f"{server.make_bucket('taken-over')}/work")
    expected, last = whole_run(machines)
    assert last > 4
    assert server.keys("taken-over") == []  # a whole run needs no other machine
    assert "no plan under these parameters, data and code; run the ranges first" in machines.run(
        "end", "--finish", code=1
    )

    hanging = tmp_path / "hanging"
    lost = machines.start("lost", "--shards", f"0-{last}", HANG=str(hanging))
    works_until(hanging.exists, lost)
    named = machines.run("end", "--finish", code=1)
    assert f"{last - 1} of {last + 1} shards are missing: 2-{last};" in named
    other = machines.start("other", "--shards", f"1-{last}")
    done = f"done/{last:05d}.json"
    works_until(lambda: any(key.endswith(done) for key in server.keys("taken-over")), other)
    time.sleep(9)  # longer than a lease lasts, but this one is renewed
    assert other.poll() is None
    warm.kill(lost.pid)
    lost.communicate()
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert "waiting for shard 00002: another run makes it" in errors

    machines.run("end", "--finish")
    assert digests(machines.folder("end") / "data/raw") == expected
    assert digests(machines.folder("end") / "reports/ingest") == digests(machines.folder("whole") / "reports/ingest")
    assert sorted(path.name for path in (machines.folder("end") / "data").iterdir()) == [".raw.lock", "raw"]
    machines.run("other", "--finish")  # any machine may, and more than one
    assert digests(machines.folder("other") / "data/raw") == expected


@pytest.mark.costs(7, "three machines at once, and three runs around an outage")
def test_ranges_at_once_make_one_plan_and_survive_an_outage(server: S3Server, tmp_path: Path) -> None:
    machines = Machines(tmp_path, f"{server.make_bucket('outage')}/work")
    started = [machines.start(name, "--shards", "0-1") for name in ("a", "b", "c")]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    assert sum(key.endswith("done/plan.json") for key in server.keys("outage")) == 1
    planned = [(machines.folder(name) / "data/.raw.part/plan/000000.json").exists() for name in ("a", "b", "c")]
    assert sorted(planned) == [False, False, True]

    hanging = tmp_path / "hanging"
    range_of_a = machines.start("a", "--shards", "2-3", HANG=str(hanging))
    works_until(hanging.exists, range_of_a)
    server.kill()
    try:
        hanging.unlink()
        _, told = range_of_a.communicate(timeout=120)
        assert range_of_a.returncode == 1 and "Traceback" not in told, told
        assert len([line for line in told.splitlines() if "no answer from http://127.0.0.1" in line]) == 1, told
        assert "no answer from http://127.0.0.1" in machines.run("b", "--shards", "3", code=1)
    finally:
        server.start()
    machines.run("a", "--shards", "2-3")
    assert {key.rpartition("/done/")[2] for key in server.keys("outage") if "/done/" in key} == {
        "plan.json", *(f"{number:05d}.json" for number in range(4)),
    }  # fmt: skip


@pytest.mark.parametrize("in_store", [False, True], ids=["here", "store"])
def test_shard_by_machines_without_a_shared_disk(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    in_store: bool,
) -> None:  # fmt: skip
    bucket = server.make_bucket(f"sharded-{in_store}".lower())
    inputs = tmp_path / "inputs"
    pairs = [Pair(f"picture number {index}", index % 300) for index in range(340)]
    small_data.write(inputs / "data", pairs, pairs_per_shard=100)
    small_data.write_verdict(inputs / "reports/quality", passed=True, data=decisions_digest(inputs / "data/filtered"))
    arguments = [
        "shard", "--params", str(PARAMS_FILE), "--set", "shard.images_per_shard=40",
        "--set", "shard.val_fraction=0.1", "--set", "shard.test_fraction=0.1", "--set", "engine.num_workers=1",
    ]  # fmt: skip
    if in_store:
        arguments += ["--set", f"store.objects=s3://{bucket}/tars"]

    def align(name: str, *portion: str, code: int = 0) -> dict[str, str]:
        folder = tmp_path / name
        if not folder.exists():
            fresh(folder)
            for part in ("data/raw", "data/filtered", "reports/quality"):
                (folder / part).parent.mkdir(exist_ok=True)
                (folder / part).symlink_to(inputs / part)
        monkeypatch.chdir(folder)
        assert main([*arguments, "--set", f"store.work=s3://{bucket}/work", *portion]) == code
        return digests(folder / "data/shards") if (folder / "data/shards").exists() else {}

    expected = align("whole")
    splits = read_manifest(tmp_path / "whole/data/shards").splits
    last = sum(len(split.shards) for split in splits.values()) - 1
    align("a", "--shards", "0-2")
    align("b", "--shards", f"2-{last - 1}")
    assert (tmp_path / "a/data/.shards.part/.index").exists()
    assert not (tmp_path / "b/data/.shards.part/.index").exists()  # it took the plan of the other
    capsys.readouterr()
    align("end", "--finish", code=1)
    assert f"1 of {last + 1} shards are missing: {last};" in capsys.readouterr().err
    align("b", "--shards", f"{last}")
    assert align("end", "--finish") == expected


@pytest.mark.costs(5, "six runs of the filter, each as on a machine of its own")
def test_filter_by_machines_without_a_shared_disk(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_filter.quicken(monkeypatch)
    bucket = server.make_bucket("filtered")
    small_filter.shards(tmp_path / "raw", 6)
    small_filter.evaluation_set(tmp_path / "evaluation", small_filter.noise(2))

    def align(name: str, *portion: str, code: int = 0) -> dict[str, str]:
        folders = at(tmp_path / name, "filtered", "reports", "runtime") + at(tmp_path, "raw", "evaluation", "policy")
        values = ("filter.num_frequent_ngrams=60", "engine.num_workers=1", "engine.memory_limit=200MB")
        assert main(["filter", *sets(*folders, *values, f"store.work=s3://{bucket}/work"), *portion]) == code
        filtered = tmp_path / name / "filtered"
        return digests(filtered) | digests(filtered.with_name("reports")) if filtered.exists() else {}

    expected = align("whole")
    align("a", "--shards", "0-2")
    align("end", "--finish", code=1)
    assert "3 of 6 shards are missing: 3-5;" in capsys.readouterr().err
    align("b", "--shards", "3-5")  # the last: it also judges, and scores its own
    align("a", "--shards", "0-1")
    done = {key.rpartition("/done/")[2] for key in server.keys(bucket) if "/done/" in key}
    assert {name for name in done if not name.startswith("pairs-")} == {
        "judged.json", *(f"scored-{number:05d}.json" for number in (0, 1, 3, 4, 5)),
    }  # fmt: skip
    assert align("end", "--finish") == expected


def works_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    wait_until(condition, alive=lambda: process.poll() is None)


@pytest.fixture
def work(server: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> StoreWork:
    bucket = server.make_bucket(f"work-{abs(hash(request.node.name)) % 10**8}")
    config = local_store.config(tmp_path, None, work=f"s3://{bucket}/work", num_retries=5)
    opened = open_work(config, "stage", "key")
    assert opened is not None
    return opened


def piece(folder: Path, **files: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return list(files)


def test_the_first_to_publish_a_piece_counts(work: StoreWork, tmp_path: Path) -> None:
    one, other, third = tmp_path / "one", tmp_path / "other", tmp_path / "third"
    assert not work.has("0") and not work.fetch("0", third, "table") and work.finished() == frozenset()
    work.publish("0", one, piece(one, tar="of one", table="one"))
    work.publish("0", other, piece(other, tar="of another", table="another"))  # it was cut off, and comes back
    work.publish("0", one, ["tar", "table"])
    third.mkdir()
    assert work.fetch("0", third, "table") and work.has("0") and work.finished() == frozenset({"0"})
    for folder in (one, other, third):
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"tar": "of one", "table": "one"}


def test_a_piece_whose_files_are_stored_and_not_its_end_is_made_again(
    work: StoreWork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = piece(tmp_path / "one", tar="of one", table="one")
    with monkeypatch.context() as patched:
        patched.setattr(SmallObjects, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed here
        with pytest.raises(KeyboardInterrupt):
            work.publish("0", tmp_path / "one", files)
    assert not work.has("0")
    work.publish("0", tmp_path / "two", piece(tmp_path / "two", tar="of two", table="two"))
    (tmp_path / "three").mkdir()
    assert work.fetch("0", tmp_path / "three", "table")
    assert (tmp_path / "three/tar").read_text() == "of two"


def test_one_of_several_machines_gets_a_piece(work: StoreWork) -> None:
    def claim(_: int) -> bool:
        with work.claim("plan") as mine:
            time.sleep(1)
            return mine

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1
    with work.claim("plan") as mine:
        assert mine


def test_damaged_and_hostile_pieces_are_refused(work: StoreWork, server: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    work.publish("0", folder, piece(folder, table="one"))
    bucket, prefix = work.location.removeprefix("s3://").split("/", 1)
    [stored] = [key for key in server.keys(bucket) if "/objects/" in key]
    with closing(server._client()) as s3:
        s3.put_object(Bucket=bucket, Key=stored, Body=b"two")
        shutil.rmtree(folder)
        folder.mkdir()
        with pytest.raises(
            CorruptError, match=r"3 bytes with sha256 .* it is damaged: remove it and s3://.*/done/0\.json"
        ):
            work.fetch("0", folder, "table")
        assert list(folder.iterdir()) == []
        sha256 = stored.rpartition("/")[2]
        for name, digest in (("../escaped", sha256), ("/etc/escaped", sha256), ("", sha256), ("a", "../../secret")):
            files = [{"name": name, "sha256": digest, "num_bytes": 3}]
            done = json.dumps({"schema_version": 1, "files": files})
            s3.put_object(Bucket=bucket, Key=f"{prefix}/done/1.json", Body=done.encode())
            with pytest.raises(CorruptError):
                work.fetch("1", folder, "a")
        for text in (b"", b"{", b"[]", bytes(17 << 20)):
            s3.put_object(Bucket=bucket, Key=f"{prefix}/done/1.json", Body=text)
            with pytest.raises(AlignError):
                work.fetch("1", folder, "a")
    assert list(tmp_path.glob("**/escaped")) == []
