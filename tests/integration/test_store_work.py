"""`store.work` on a server: the first piece counts, an outage loses none, damaged and hostile ones are refused."""

import json
import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from align.durable.pieces import Piece, Pieces
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


def piece(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return list(files)


def test_the_first_to_publish_a_piece_counts(work, tmp_path):
    one, other, third = tmp_path / "one", tmp_path / "other", tmp_path / "third"
    assert not work.has("0") and not work.fetch("0", third, "table") and work.finished() == frozenset()
    work.publish("0", one, piece(one, tar="of one", table="one"))
    work.publish("0", other, piece(other, tar="of another", table="another"))  # it was cut off, and comes back
    work.publish("0", one, ["tar", "table"])
    third.mkdir()
    assert work.fetch("0", third, "table") and work.has("0") and work.finished() == frozenset({"0"})
    for folder in (one, other, third):
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"tar": "of one", "table": "one"}


def test_a_piece_whose_files_are_stored_and_not_its_end_is_made_again(work, tmp_path, monkeypatch):
    files = piece(tmp_path / "one", tar="of one", table="one")
    with monkeypatch.context() as patched:
        patched.setattr(client, "write_new", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed here

        with pytest.raises(KeyboardInterrupt):
            work.publish("0", tmp_path / "one", files)
    assert not work.has("0")
    work.publish("0", tmp_path / "two", piece(tmp_path / "two", tar="of two", table="two"))
    (tmp_path / "three").mkdir()
    assert work.fetch("0", tmp_path / "three", "table")
    assert (tmp_path / "three/tar").read_text() == "of two"


def test_an_outage_loses_no_finished_piece(work, server, tmp_path):
    hasty = replace(work, config=work.config.model_copy(update={"num_retries": 1}))
    pieces, one = Pieces(tmp_path / "one", hasty), Piece("0", "table", lambda: ["tar"])
    (tmp_path / "one").mkdir()
    made = []

    def make():
        made.append(piece(tmp_path / "one", tar="of one", table="one"))
        server.kill()

    try:
        with pytest.raises(ServiceError, match=r"no answer from http://127\.0\.0\.1"):
            pieces.make(one, make)
    finally:
        server.start()
    assert not work.has("0")
    pieces.make(one, make)
    assert work.has("0") and len(made) == 1


def test_damaged_and_hostile_pieces_are_refused(work, server, tmp_path):
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
