"""Files and the content-addressed store on a real S3 server that is killed, refuses, and has damaged objects."""

import hashlib
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from align.errors import CorruptError, DataError, ServiceError
from align.services.files.files import StoreFiles
from align.services.s3.client import client, upload
from align.services.s3.store import Objects
from tests.support import local_store

MIB = 1 << 20


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    server.use(monkeypatch)
    monkeypatch.setattr("align.services.s3.client._PART_BYTES", 5 * MIB)


def config(cache, bucket="none", **changes):
    own = {"objects": f"s3://{bucket}/some/prefix", "cache": cache}
    return local_store.config(cache, **(own | changes))


def noise(num_bytes, seed=0):
    return random.Random(seed).randbytes(num_bytes)


def write(root, data):
    path = root / "a.tar"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def put_object(server, bucket, key, data):
    with closing(server._client()) as s3:
        s3.put_object(Bucket=bucket, Key=key, Body=data)


def test_objects_are_listed_as_files_are(server, tmp_path, monkeypatch):
    bucket = server.make_bucket("listed")
    for key in ("crawl/a.warc", "crawl/deep/b.warc.gz", "crawl/deep/notes.md", "crawl2/c.warc", "top.warc"):
        put_object(server, bucket, key, key.encode())
    put_object(server, bucket, "crawl/list.paths", b"deep/b.warc.gz\ns3://listed/top.warc\n../none\n")
    files = StoreFiles(config(tmp_path))

    def listed(location):
        return [uri.removeprefix("s3://listed/") for uri in files.list(f"s3://listed{location}", [".warc", ".warc.gz"])]

    assert listed("") == ["crawl/a.warc", "crawl/deep/b.warc.gz", "crawl2/c.warc", "top.warc"]
    assert listed("/crawl") == listed("/crawl/") == ["crawl/a.warc", "crawl/deep/b.warc.gz"]
    with monkeypatch.context() as patch:  # the listing has told what they are
        patch.setattr("align.services.files.files.stat", None)
        found = files.list("s3://listed/crawl/", [".warc", ".warc.gz"])
        stamps = files.stamps(found)
    assert stamps == StoreFiles(config(tmp_path)).stamps(found)
    assert listed("/top.warc") == ["top.warc"]
    assert listed("/crawl*/*.warc") == ["crawl/a.warc", "crawl2/c.warc"]
    assert listed("/**/*.warc*") == ["crawl/a.warc", "crawl/deep/b.warc.gz", "crawl2/c.warc", "top.warc"]
    assert listed("/crawl/list.paths") == ["crawl/../none", "crawl/deep/b.warc.gz", "top.warc"]
    for nothing in ("s3://listed/none", "s3://listed/crawl/*.zip"):
        with pytest.raises(DataError, match="check the path"):
            files.list(nothing, [".warc"])
    with pytest.raises(DataError, match="there is no such bucket"):
        files.list("s3://never-made", [".warc"])
    with pytest.raises(DataError, match="no such object"):
        files.open("s3://listed/none")


def test_a_stamp_of_a_folder_changes_with_each_object_in_it(server, tmp_path):
    bucket = server.make_bucket("stamped")
    files = StoreFiles(config(tmp_path))
    empty = files.stamp("s3://stamped/00000/")
    seen = {empty}
    for key, data in (("00000/0.jpg", b"one"), ("00000/1.jpg", b"one"), ("00000/1.jpg", b"two")):
        put_object(server, bucket, key, data)
        seen.add(files.stamp("s3://stamped/00000/"))
    assert len(seen) == 4
    put_object(server, bucket, "000001/0.jpg", b"elsewhere")
    assert files.stamps(["s3://stamped/00000/", "s3://stamped/none/"])[1] == empty
    assert files.stamp("s3://stamped/00000/") in seen


def test_a_stream_reads_and_seeks_as_a_file_does(server, tmp_path):
    bucket, data = server.make_bucket("stream"), noise(21 * MIB + 7)
    put_object(server, bucket, "x", data)
    path, _ = write(tmp_path, data)
    files = pickle.loads(pickle.dumps(StoreFiles(config(tmp_path))))
    draw = random.Random(1)
    with files.open("s3://stream/x") as theirs, path.open("rb") as ours:
        for _ in range(60):
            if draw.random() < 0.5:
                offset = draw.choice([0, len(data) - 5, len(data), len(data) + 9, draw.randrange(len(data))])
                assert theirs.seek(offset) == ours.seek(offset)
            if draw.random() < 0.3:
                assert theirs.seek(1000, 1) == ours.seek(1000, 1)
            size = draw.choice([0, 1, 511, 70_000, 3 * MIB])
            assert theirs.read(size) == ours.read(size)
            assert theirs.tell() == ours.tell()
        assert theirs.seek(0) == 0
        assert theirs.read() == data
        assert theirs.seek(-3, 2) == len(data) - 3
        assert theirs.read() == data[-3:]
    assert files.read("s3://stream/x", 5, 10) == data[5:15]
    assert files.read("s3://stream/x", len(data) - 2, 10) == data[-2:]
    before = files.stamp("s3://stream/x")
    put_object(server, bucket, "x", b"another")
    assert files.stamp("s3://stream/x") == before  # asked once: a read of the other object is an error
    with pytest.raises(DataError, match="replaced while it was read"):
        files.open("s3://stream/x").read()
    assert StoreFiles(config(tmp_path)).stamp("s3://stream/x") != before


@pytest.mark.parametrize("num_bytes", [0, 5 * MIB, 12 * MIB])
def test_an_object_comes_back_whole_in_one_part_or_many(server, tmp_path, num_bytes):
    settings = config(tmp_path / "cache", server.make_bucket(f"whole-{num_bytes}"))
    objects, (path, sha256) = Objects(settings), write(tmp_path, noise(num_bytes))
    assert not objects.exists(sha256)
    objects.put(path, sha256)
    assert objects.exists(sha256)
    assert server.keys(f"whole-{num_bytes}") == [f"some/prefix/{sha256[:2]}/{sha256}.tar"]
    assert objects.get(sha256, num_bytes).read_bytes() == path.read_bytes()
    objects.delete(sha256)
    assert server.keys(f"whole-{num_bytes}") == []
    with pytest.raises(DataError, match="no such object"):
        objects.get(sha256, num_bytes)


def test_two_writers_at_once_never_mix(server, tmp_path):
    settings = config(tmp_path / "cache", server.make_bucket("writers"))
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(noise(6 * MIB, seed=number))
    uri = "s3://writers/one"
    with ThreadPoolExecutor(6) as pool:
        first = list(pool.map(lambda path: upload(settings, path, uri), paths))
    # SeaweedFS sometimes accepts two of six (its check and its write are not one step), which is why names are digests:
    # the object is one writer's bytes, whole, and never those of a refused writer.
    winners = [path.read_bytes() for path, won in zip(paths, first, strict=True) if won]
    assert 1 <= len(winners) < len(paths)
    assert server.objects("writers")["one"] in winners

    objects, (path, sha256) = Objects(settings), write(tmp_path, noise(6 * MIB))
    with ThreadPoolExecutor(4) as pool:  # the same tar, made twice: all writers succeed
        list(pool.map(lambda _: objects.put(path, sha256), range(4)))
        copies = list(pool.map(lambda _: objects.get(sha256, 6 * MIB), range(4)))
    assert {copy.read_bytes() for copy in copies} == {path.read_bytes()}
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == [f"{sha256}.tar"]


def test_a_damaged_object_is_detected_on_first_read(server, tmp_path):
    objects = Objects(config(tmp_path / "cache", server.make_bucket("damaged")))
    path, sha256 = write(tmp_path, noise(MIB))
    for damaged in (noise(MIB, seed=1), noise(MIB)[:-1], b""):
        put_object(server, "damaged", objects.uri(sha256).removeprefix("s3://damaged/"), damaged)
        with pytest.raises(CorruptError, match=rf"{sha256}\.tar: {len(damaged):,} bytes.*, but it should have "):
            objects.get(sha256, MIB)
    with pytest.raises(CorruptError, match="remove the object"):
        objects.put(path, sha256)
    assert not any(file.is_file() for file in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_refused_credentials_are_one_clear_error(server, tmp_path, monkeypatch, variable):
    bucket = server.make_bucket(f"refused-{'id' if 'ID' in variable else 'key'}")
    objects, (path, sha256) = Objects(config(tmp_path / "cache", bucket)), write(tmp_path, b"bytes")
    put_object(server, bucket, "x.warc", b"bytes")
    monkeypatch.setenv(variable, "wrong")
    for attempt in (
        lambda: objects.put(path, sha256),
        lambda: objects.get(sha256, 5),
        lambda: StoreFiles(objects.config).list(f"s3://{bucket}", []),
        lambda: StoreFiles(objects.config).open(f"s3://{bucket}/x.warc"),
    ):
        with pytest.raises(DataError, match=r"refuses access .* check AWS_ACCESS_KEY_ID"):
            attempt()
    assert server.keys(bucket) == ["x.warc"]


def test_no_credentials_are_one_clear_error(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match="no credentials for S3"):
        StoreFiles(config(tmp_path)).open("s3://bucket/x")


def test_an_unavailable_server_is_one_clear_error(server, tmp_path):
    bucket = server.make_bucket("away")
    objects, (path, sha256) = Objects(config(tmp_path / "cache", bucket)), write(tmp_path, noise(12 * MIB))
    objects.put(path, sha256)
    objects.get(sha256, 12 * MIB)
    (tmp_path / "short").write_bytes(b"bytes")
    of_short = hashlib.sha256(b"bytes").hexdigest()
    server.kill()
    try:
        assert objects.get(sha256, 12 * MIB).read_bytes() == path.read_bytes()  # no second download
        for attempt in (
            lambda: objects.put(tmp_path / "short", of_short),
            lambda: objects.get(of_short, 5),
            lambda: StoreFiles(objects.config).list("s3://away", []),
            lambda: StoreFiles(objects.config).stamp("s3://away/x"),
        ):
            with pytest.raises(ServiceError, match=rf"no answer from {server.url} .* is it up"):
                attempt()
    finally:
        server.start()
    objects.put(tmp_path / "short", of_short)
    assert objects.get(of_short, 5).read_bytes() == b"bytes"


def test_a_server_killed_during_a_put_has_no_partial_object(server, tmp_path, monkeypatch):
    bucket = server.make_bucket("during-put")
    objects, (path, sha256) = Objects(config(tmp_path / "cache", bucket)), write(tmp_path, noise(32 * MIB))
    s3 = client(objects.config)
    put, parts = s3.upload_part, []

    def upload_part(**arguments):
        if arguments["PartNumber"] == 4:  # some parts exist, and no further one can be uploaded
            server.kill()
        parts.append(arguments["PartNumber"])
        return put(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(s3, "upload_part", upload_part)
        with pytest.raises(ServiceError, match="no answer"):
            objects.put(path, sha256)
    server.start()
    assert 4 in parts
    assert server.keys(bucket) == []
    assert not objects.exists(sha256)
    objects.put(path, sha256)
    assert objects.get(sha256, 32 * MIB).read_bytes() == path.read_bytes()


def test_a_reader_outlives_a_server_that_comes_back(server, tmp_path):
    bucket, data = server.make_bucket("comes-back"), noise(20 * MIB)
    path, sha256 = write(tmp_path, data)
    Objects(config(tmp_path, bucket)).put(path, sha256)
    patient = config(tmp_path / "cache", bucket, num_retries=6)
    with StoreFiles(patient).open(Objects(patient).uri(sha256)) as stream:
        got = stream.read(MIB)
        with server.away_for(0.5):
            got += stream.read()
    assert got == data
    with server.away_for(0.5):
        assert Objects(patient).get(sha256, len(data)).read_bytes() == data
