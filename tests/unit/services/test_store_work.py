"""`store.work` over a client in memory, which is cut off, damaged, or holds what a stranger wrote."""

import hashlib
import json
from pathlib import Path

import pytest

import align.services.s3.store
import align.services.store_work
from align.durable.files import is_temporary
from align.durable.pieces import Piece, Pieces
from align.errors import CorruptError, DataError, FormatError, ServiceError
from align.services.s3 import client as store_client
from align.services.s3.locations import Stat
from align.services.store_work import StoreWork, require_conditions
from tests.support import local_store

LOCATION = "s3://bucket/work/ingest/key"
CONFIG = local_store.config(Path(), objects="s3://bucket/tars", work="s3://bucket/work", num_retries=5)
FILES = ["0.tar", "0_stats.json", "0.parquet"]
PIECE = Piece("0", FILES[-1], lambda: FILES[:-1])


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


def make(folder, whose):
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).write_text(f"{whose} {name}")
    return FILES


def found(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and not is_temporary(path)}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_take_over_that_is_cut_off_leaves_ones_own_piece_whole(client, tmp_path, at):
    def overtaken():
        make(tmp_path / "one", "one")
        work().publish("0", tmp_path / "other", make(tmp_path / "other", "other"))

    def cut_off(number):
        if number == at:
            raise ServiceError("cut off")

    client.before_download = cut_off
    (tmp_path / "one").mkdir()
    with pytest.raises(ServiceError, match="cut off"):
        Pieces(tmp_path / "one", work()).make(PIECE, overtaken)
    assert found(tmp_path / "one") == {name: f"one {name}" for name in FILES}
    assert not [path for path in (tmp_path / "one").iterdir() if is_temporary(path)]
    assert Pieces(tmp_path / "one", work()).make(PIECE, overtaken) is None  # it is complete, but not yet published
    assert found(tmp_path / "one") == {name: f"other {name}" for name in FILES}


@pytest.mark.parametrize("step", range(3))
def test_a_take_over_that_is_killed_leaves_no_mixture_that_is_complete(client, tmp_path, monkeypatch, step):
    one, other = tmp_path / "one", tmp_path / "other"
    work().publish("0", other, make(other, "other")[1:])  # its tar went elsewhere
    make(one, "one")
    replaced = 0
    replace = align.services.store_work.os.replace

    def killed(source, target):
        nonlocal replaced
        if replaced == step:
            raise Killed
        replaced += 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(align.services.store_work.os, "replace", killed)
        if step < 2:
            with pytest.raises(Killed):
                work().publish("0", one, FILES)
            assert FILES[-1] not in found(one)
        else:
            work().publish("0", one, FILES)
    assert work().fetch("0", one, FILES[-1])
    assert found(one) == {name: f"other {name}" for name in FILES[1:]}


@pytest.mark.parametrize("name", [
    ".work.json", ".align.json", ".claims/0.lock", "./.work.json", ".claims", "a/../.work.json", "a//b", "/a", "", ".",
    "a\0b", ".0.parquet.host.1.00000000-0.part", "plan/.a.host.1.00000000-0.part", ".work.json/a", "plan",
])  # fmt: skip
def test_files_that_no_piece_has_are_refused(client, tmp_path, name):
    evil = b'{"key": "evil"}'
    stored = client.put(name, hashlib.sha256(evil).hexdigest(), evil)
    last = client.put(FILES[-1], hashlib.sha256(b"table").hexdigest(), b"table")
    (tmp_path / ".work.json").write_text("ours")
    (tmp_path / "plan").mkdir()
    done = {"schema_version": 1, "files": [stored, last]}
    client.objects[f"{LOCATION}/done/0.json"] = json.dumps(done).encode()
    with pytest.raises(CorruptError, match=r"^s3://bucket/work/ingest/key/done/0.json: names the file"):
        Pieces(tmp_path, work()).bring([PIECE])
    assert found(tmp_path) == {".work.json": "ours"}


@pytest.mark.parametrize("names", [[], ["0.tar"], ["0.parquet", "0.tar"], ["0.parquet", "0.parquet"]])
def test_a_piece_ends_with_its_last_file(client, tmp_path, names):
    data = b"bytes"
    files = [client.put(name, hashlib.sha256(data).hexdigest(), data) for name in names]
    done = json.dumps({"schema_version": 1, "files": files})
    client.objects[f"{LOCATION}/done/0.json"] = done.encode()
    with pytest.raises(CorruptError, match=r"done/0.json: (does not end with|names) the file '0.parquet'"):
        Pieces(tmp_path, work()).bring([PIECE])
    assert found(tmp_path) == {}


def test_files_in_hidden_folders_may_complete_a_piece(client, tmp_path):
    for name in (".plan/table", ".plan/.align.json", ".done/0.json"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text("{}")
    work().publish("0", tmp_path / "one", [".plan/table", ".plan/.align.json", ".done/0.json"])
    assert work().fetch("0", tmp_path / "other", ".done/0.json")
    assert (tmp_path / "other/.plan/.align.json").exists() and (tmp_path / "other/.done/0.json").exists()


def test_of_an_object_of_another_size_nothing_is_read(client, tmp_path):
    work().publish("0", tmp_path / "one", make(tmp_path / "one", "one"))
    sha256 = hashlib.sha256(b"one 0.tar").hexdigest()
    client.put("", sha256, bytes(1 << 20))
    with pytest.raises(CorruptError, match=rf"objects/{sha256}: 1,048,576 bytes, but it should have 9 bytes"):
        work().fetch("0", tmp_path / "other", FILES[-1])
    assert client.num_downloads == 0


def test_a_transfer_that_was_damaged_is_repeated(client, tmp_path):
    work().publish("0", tmp_path / "one", make(tmp_path / "one", "one"))
    uri = f"{LOCATION}/objects/{hashlib.sha256(b'one 0.tar').hexdigest()}"

    def damaged_once(number):
        client.objects[uri] = b"ONE 0.tar" if number == 1 else b"one 0.tar"

    client.before_download = damaged_once
    assert work().fetch("0", tmp_path / "other", FILES[-1])
    assert found(tmp_path / "other") == found(tmp_path / "one")
    assert client.num_downloads == 4


def test_what_is_missing_or_cannot_be_read_is_told_with_its_uri(client, tmp_path):
    work().publish("0", tmp_path / "one", make(tmp_path / "one", "one"))
    uri = f"{LOCATION}/objects/{hashlib.sha256(b'one 0.tar').hexdigest()}"
    del client.objects[uri]
    with pytest.raises(DataError, match=rf"^{uri}: no such object; .* Remove {LOCATION}/done/0.json and run again"):
        work().fetch("0", tmp_path / "other", FILES[-1])
    assert found(tmp_path / "other") == {}
    client.objects[f"{LOCATION}/done/0.json"] = b"{"
    with pytest.raises(FormatError, match=r"^s3://bucket/work/ingest/key/done/0.json: not valid JSON"):
        work().has("0")


@pytest.mark.parametrize("ignores", [True, False])
def test_a_server_that_ignores_conditions_is_refused(client, monkeypatch, ignores):
    if ignores:
        monkeypatch.setattr(store_client, "write_new", lambda config, uri, data: not client.objects.update({uri: data}))
        with pytest.raises(ServiceError, match=r"ignores the condition of a write \(If-None-Match\)"):
            require_conditions(CONFIG, LOCATION)
    else:
        require_conditions(CONFIG, LOCATION)
    assert client.objects == {}


def test_a_machine_of_a_cluster_keeps_no_piece_and_makes_none_that_another_has(client, tmp_path):
    pieces = Pieces(tmp_path / "nowhere", work()).here(tmp_path / "machine")
    assert pieces.folder.parent == tmp_path / "machine" and pieces.here(tmp_path / "machine") == pieces
    assert pieces.make(PIECE, lambda: make(pieces.folder, "one")) == FILES
    assert found(pieces.folder) == {}
    assert pieces.make(PIECE, lambda: make(pieces.folder, "another")) is None
    assert pieces.missing([PIECE, Piece("1", "1.parquet")]) == [Piece("1", "1.parquet")]
    pieces.bring([PIECE])
    assert found(pieces.folder) == {name: f"one {name}" for name in FILES}
    with pytest.raises(DataError, match=r"1\.parquet: missing; run the stage again"):
        pieces.bring([Piece("1", "1.parquet")])


def test_a_machine_reads_a_range_of_another_ones_piece_and_nothing_of_it_stays(client, tmp_path):
    pieces = Pieces(tmp_path / "nowhere", work()).here(tmp_path / "machine")
    pieces.make(PIECE, lambda: make(pieces.folder, "one"))
    assert pieces.read("0", "0.tar", 2, 3) == b"e 0"
    for piece, name in (("0", "1.tar"), ("1", "0.tar")):
        with pytest.raises(DataError, match="run the stage again"):
            pieces.read(piece, name, 0, 1)
    work().remove("0")
    work().remove("0")
    assert client.objects == {} and found(pieces.folder) == {}
