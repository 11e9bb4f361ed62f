"""`store.work` over a client in memory, which is cut off, damaged, or holds what a stranger wrote."""

import hashlib
import json
from pathlib import Path

import pytest

import align.services.s3.store
from align.durable.steps import Step, Work
from align.durable.work import SCRATCH
from align.errors import CorruptError, DataError, FormatError, ServiceError
from align.services.s3 import client as store_client
from align.services.s3.locations import Stat
from align.services.store_work import StoreWork, require_conditions
from tests.support import local_store

LOCATION = "s3://bucket/work/ingest/key"
CONFIG = local_store.config(Path(), objects="s3://bucket/tars", work="s3://bucket/work", num_retries=5)
RESULT = "written/0"
FILES = ["0.tar", "0_stats.json", "0.parquet"]


class Client:
    """The functions of `store_client` that are called, on a dict."""

    def __init__(self):
        self.objects = {}
        self.num_downloads = 0
        self.before_download = lambda number: None

    def read_small(self, config, uri, max_bytes):
        return self.objects.get(uri)

    def write_new(self, config, uri, data):
        return self.objects.setdefault(uri, data) is data

    def stat(self, config, uri):
        return Stat(len(self.objects[uri]), "etag") if uri in self.objects else None

    def upload(self, config, path, uri):
        return self.objects.setdefault(uri, data := path.read_bytes()) is data

    def download(self, config, uri, file, *status):
        self.num_downloads += 1
        self.before_download(self.num_downloads)
        file.write(self.objects[uri])
        return hashlib.sha256(self.objects[uri]).hexdigest()

    def list_objects(self, config, bucket, prefix):
        return [uri.removeprefix("s3://bucket/") for uri in self.objects if uri.startswith(f"s3://{bucket}/{prefix}")]

    def read_range(self, config, uri, offset, size):
        return self.objects[uri][offset : offset + size]

    def remove(self, config, uri):
        self.objects.pop(uri, None)

    def put(self, name, sha256, text):
        self.objects[f"{LOCATION}/objects/{sha256}"] = text
        return {"name": name, "sha256": sha256, "num_bytes": len(text)}


@pytest.fixture
def client(monkeypatch):
    made = Client()
    for name in ("read_small", "write_new", "stat", "upload", "download", "list_objects", "read_range", "remove"):
        monkeypatch.setattr(store_client, name, getattr(made, name))
        if hasattr(align.services.s3.store, name):
            monkeypatch.setattr(align.services.s3.store, name, getattr(made, name))
    yield made


def work():
    return StoreWork(CONFIG, LOCATION)


def write(folder, whose):
    """Files of a result, which say whose they are."""
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).write_text(f"{whose} {name}")
    return folder


def found(folder):
    """The files of a folder, but for those that are not complete."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*") if path.is_file() and SCRATCH not in path.parts
    }  # fmt: skip


def of(whose):
    return {f"{RESULT}/{name}": f"{whose} {name}" for name in FILES}


def done(files, result=RESULT):
    """What says that a result is complete, as anybody may have written it."""
    return {f"{LOCATION}/done/{result}.json": json.dumps({"schema_version": 1, "files": files}).encode()}


@pytest.mark.parametrize("at", [1, 2, 3])
def test_who_was_overtaken_takes_what_counts_now_or_once_the_server_is_back(client, tmp_path, at):
    def overtaken(out):
        write(out, "one")
        assert work().publish(RESULT, write(tmp_path / "other", "other"))

    def cut_off(number):
        if number == at:
            raise ServiceError("cut off")

    client.before_download = cut_off
    mine = Work(tmp_path / "one", work())
    with pytest.raises(ServiceError, match="cut off"):
        mine.make(RESULT, overtaken)
    assert found(tmp_path / "one") == {}
    mine.make(RESULT, overtaken)
    assert found(tmp_path / "one") == of("other")
    assert [*(tmp_path / "one" / SCRATCH).iterdir()] == []


def test_the_first_counts_and_equal_bytes_are_no_others(client, tmp_path):
    one, other = write(tmp_path / "one", "one"), write(tmp_path / "other", "other")
    assert not work().has(RESULT) and work().finished() == frozenset()
    assert work().publish(RESULT, one) and work().publish(RESULT, one) and not work().publish(RESULT, other)
    assert work().has(RESULT) and work().finished() == {RESULT}
    Work(tmp_path / "third", work()).fetch([RESULT, RESULT])
    assert found(tmp_path / "third") == of("one")


def test_what_an_outage_has_kept_from_the_store_is_stored_and_not_made_again(client, tmp_path, monkeypatch):
    made = []

    def fill(out):
        made.append(write(out, "one"))

    mine = Work(tmp_path / "one", work())
    with monkeypatch.context() as patch, pytest.raises(ServiceError, match="cut off"):
        patch.setattr(store_client, "write_new", lambda *_: (_ for _ in ()).throw(ServiceError("cut off")))
        mine.make(RESULT, fill)
    assert found(tmp_path / "one") == of("one") and not work().has(RESULT)
    mine.make(RESULT, fill)
    assert work().has(RESULT) and len(made) == 1


@pytest.mark.parametrize("name", [
    "/a", "", ".", "..", "../a", "./a", "a//b", "a/", "a/../b", "a\0b",
])  # fmt: skip
def test_files_that_no_folder_has_are_refused(client, tmp_path, name):
    evil = client.put(name, hashlib.sha256(b"evil").hexdigest(), b"evil")
    client.objects |= done([evil])
    with pytest.raises(CorruptError, match=rf"^{LOCATION}/done/{RESULT}.json: names the file"):
        Work(tmp_path / "one", work()).fetch([RESULT])
    assert found(tmp_path) == {}


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b", "a"]])
def test_files_that_no_folder_has_at_once_are_refused(client, tmp_path, names):
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    client.objects |= done([client.put(name, sha256, b"bytes") for name in names])
    with pytest.raises(CorruptError, match=r"done/written/0.json: names the file 'a"):
        Work(tmp_path / "one", work()).fetch([RESULT])
    assert found(tmp_path) == {}


def test_of_an_object_of_another_size_nothing_is_read(client, tmp_path):
    work().publish(RESULT, write(tmp_path / "one", "one"))
    sha256 = hashlib.sha256(b"one 0.parquet").hexdigest()
    client.put("", sha256, bytes(1 << 20))
    with pytest.raises(CorruptError, match=rf"objects/{sha256}: 1,048,576 bytes, but it should have 13 bytes"):
        Work(tmp_path / "other", work()).fetch([RESULT])
    assert client.num_downloads == 0


def test_a_transfer_that_was_damaged_is_repeated(client, tmp_path):
    work().publish(RESULT, write(tmp_path / "one", "one"))
    uri = f"{LOCATION}/objects/{hashlib.sha256(b'one 0.parquet').hexdigest()}"

    def damaged_once(number):
        client.objects[uri] = b"ONE 0.parquet" if number == 1 else b"one 0.parquet"

    client.before_download = damaged_once
    Work(tmp_path / "other", work()).fetch([RESULT])
    assert found(tmp_path / "other") == of("one")
    assert client.num_downloads == 4


def test_what_is_missing_or_cannot_be_read_is_told_with_its_uri(client, tmp_path):
    work().publish(RESULT, write(tmp_path / "one", "one"))
    uri, other = f"{LOCATION}/objects/{hashlib.sha256(b'one 0.tar').hexdigest()}", Work(tmp_path / "other", work())
    del client.objects[uri]
    with pytest.raises(DataError, match=rf"^{uri}: no such object; .* Remove {LOCATION}/done/{RESULT}.json and run ag"):
        other.fetch([RESULT])
    assert found(tmp_path / "other") == {}
    with pytest.raises(DataError, match=r"written/1: missing; run the stage again"):
        other.fetch(["written/1"])
    for file in ("1.tar", "0"):
        with pytest.raises(DataError, match="run the stage again"):
            other.open(RESULT, file)
    client.objects[f"{LOCATION}/done/{RESULT}.json"] = b"{"
    with pytest.raises(FormatError, match=rf"^{LOCATION}/done/{RESULT}.json: not valid JSON"):
        work().has(RESULT)


@pytest.mark.parametrize("ignores", [True, False])
def test_a_server_that_ignores_conditions_is_refused(client, monkeypatch, ignores):
    if ignores:
        monkeypatch.setattr(store_client, "write_new", lambda config, uri, data: not client.objects.update({uri: data}))
        with pytest.raises(ServiceError, match=r"ignores the condition of a write \(If-None-Match\)"):
            require_conditions(CONFIG, LOCATION)
    else:
        require_conditions(CONFIG, LOCATION)
    assert client.objects == {}


class Machine:
    """See `Executor`: a machine of a cluster that shares no disk with us."""

    is_cluster = True
    num_at_once = 1

    def __init__(self, scratch):
        self.scratch = scratch

    def map(self, task, items):
        with task.resource(self.scratch) as kept:
            yield from (task.function(kept, item) for item in items)


def test_a_machine_of_a_cluster_keeps_only_what_it_reads_and_makes_nothing_that_another_has(client, tmp_path):
    made = []

    def make(here, out, item):
        assert here.folder.is_relative_to(tmp_path / "machine")
        made.append(item)
        (out / "text").write_text((here.folder / "head/text").read_text() + item)

    ours, machine = Work(tmp_path / "ours", work()), Machine(tmp_path / "machine")
    ours.make("head", lambda out: (out / "text").write_text("a "))
    step = Step("written", make, "texts", ["head"])
    ours.run(step, {"0": "one"}, machine)
    ours.run(step, {"0": "one", "1": "two"}, machine)
    Work(tmp_path / "again", work()).run(step, {"0": "one", "1": "two"}, machine)
    assert made == ["one", "two"]
    assert found(tmp_path / "ours") == {"head/text": "a ", "written/0/text": "a one", "written/1/text": "a two"}
    assert [*found(tmp_path / "machine").values()] == ["a "]
    assert work().finished() == {"head", "written/0", "written/1"}
