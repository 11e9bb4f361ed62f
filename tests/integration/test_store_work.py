"""`store.work` on a server: the first result counts, an outage loses none, damaged and hostile ones are refused."""

import json
from contextlib import closing
from dataclasses import replace

import pytest

from align.durable.steps import Work
from align.errors import AlignError, CorruptError, ServiceError
from align.services.s3 import client
from align.services.store_work import open_work
from tests.support import local_store


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    server.use(monkeypatch)


@pytest.fixture
def work(server, tmp_path, request):
    bucket = server.make_bucket(f"work-{abs(hash(request.node.name)) % 10**8}")
    config = local_store.config(tmp_path, objects=f"s3://{bucket}/tars", work=f"s3://{bucket}/work", num_retries=5)
    assert open_work(config, "local", "stage", "key") is None
    return open_work(config, "slurm", "stage", "key")


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_first_to_publish_a_result_counts(work, tmp_path):
    one, other = write(tmp_path / "one", tar="of one", table="one"), write(tmp_path / "other", table="another")
    third = Work(tmp_path / "third", work)
    assert not work.has("a/0") and not work.fetch("a/0", tmp_path) and work.finished() == frozenset()
    assert work.publish("a/0", one)
    assert not work.publish("a/0", other)  # it was cut off, and comes back
    assert work.publish("a/0", one)
    with third.open("a/0", "tar") as stream:
        assert stream.seek(3) and stream.read() == b"one"
    assert not (tmp_path / "third").exists()
    third.fetch(["a/0"])
    assert work.has("a/0") and work.finished() == frozenset({"a/0"})
    assert texts(tmp_path / "third/a/0") == {"tar": "of one", "table": "one"}


def test_a_result_whose_files_are_stored_and_not_its_end_is_made_again(work, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(client, "write_new", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed here

        with pytest.raises(KeyboardInterrupt):
            work.publish("0", write(tmp_path / "one", tar="of one", table="one"))
    assert not work.has("0")
    assert work.publish("0", write(tmp_path / "two", tar="of two", table="two"))
    Work(tmp_path / "three", work).fetch(["0"])
    assert texts(tmp_path / "three/0") == {"tar": "of two", "table": "two"}


def test_an_outage_loses_no_finished_result(work, server, tmp_path):
    hasty = replace(work, config=work.config.model_copy(update={"num_retries": 1}))
    ours, made = Work(tmp_path / "one", hasty), []

    def fill(out):
        made.append(write(out, tar="of one", table="one"))
        server.kill()

    try:
        with pytest.raises(ServiceError, match=r"no answer from http://127\.0\.0\.1"):
            ours.make("0", fill)
    finally:
        server.start()
    assert not work.has("0")
    ours.make("0", fill)
    assert work.has("0") and len(made) == 1


def test_damaged_and_hostile_results_are_refused(work, server, tmp_path):
    work.publish("0", write(tmp_path / "one", table="one"))
    other = Work(tmp_path / "other", work)
    bucket, prefix = work.location.removeprefix("s3://").split("/", 1)
    [stored] = [key for key in server.keys(bucket) if "/objects/" in key]
    with closing(server._client()) as s3:
        s3.put_object(Bucket=bucket, Key=stored, Body=b"two")
        with pytest.raises(
            CorruptError, match=r"3 bytes with sha256 .* it is damaged: remove it and s3://.*/done/0\.json"
        ):
            other.fetch(["0"])
        sha256 = stored.rpartition("/")[2]
        for name, digest in (("../escaped", sha256), ("/etc/escaped", sha256), ("", sha256), ("a", "../../secret")):
            files = [{"name": name, "sha256": digest, "num_bytes": 3}]
            done = json.dumps({"schema_version": 1, "files": files})
            s3.put_object(Bucket=bucket, Key=f"{prefix}/done/1.json", Body=done.encode())
            with pytest.raises(CorruptError):
                other.fetch(["1"])
        for text in (b"", b"{", b"[]", bytes(17 << 20)):
            s3.put_object(Bucket=bucket, Key=f"{prefix}/done/1.json", Body=text)
            with pytest.raises(AlignError):
                other.fetch(["1"])
    assert [path for path in (tmp_path / "other").rglob("*") if path.is_file()] == []
    assert list(tmp_path.glob("**/escaped")) == []
