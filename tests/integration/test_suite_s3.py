"""Evaluation sets in an S3 bucket are read in place, and are the same as in a folder."""

import io

import pytest

from align.errors import CorruptError, DataError
from align.evaluate.captioned import read_ratings
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.evaluation_sets.named import named_sets
from align.services.files.files import StoreFiles
from tests.support import local_store
from tests.support.caption_sets import karpathy, pictures
from tests.support.class_sets import folder, parquet, tars
from tests.support.colours import square
from tests.support.evaluation_sets import write_items
from tests.support.rated_captions import captioned, ratings
from tests.support.suites import suite


def concepts():
    images = [EvaluationImage(name, name, (name,), None, "query") for name in ("green", "red")]
    return EvaluationSet("mine", "retrieval", "", images, (), (), held([square("green"), square("red")]))


def put(server, bucket, root):
    """Uploads a folder under `a/`."""
    client = server._client()
    client.create_bucket(Bucket=bucket)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        client.upload_fileobj(io.BytesIO(file.read_bytes()), bucket, f"a/{file.relative_to(root).as_posix()}")
    return client


def test_sets_in_s3_are_those_in_a_folder(server, tmp_path, monkeypatch):
    server.use(monkeypatch)
    root = tmp_path / "sets"
    folder(root / "folder"), tars(root / "tars"), parquet(root / "hub")
    written = write_items(root / "own", concepts())
    pictures(root / "captions/images")
    karpathy(root / "captions/dataset.json")
    client = put(server, "sets", root)

    def entries(base):
        both = {"tasks": ["zero_shot", "knn"]}
        return [
            {"name": "folder", "path": f"{base}/folder", "format": "folder", **both},
            {"name": "tars", "path": f"{base}/tars", "format": "webdataset", **both},
            {"name": "hub", "path": f"{base}/hub", "format": "parquet", **both},
            {"name": "captions", "path": f"{base}/captions/dataset.json", "format": "karpathy", "tasks": ["retrieval"]},
            {"name": "mine", "path": f"{base}/own", "format": "align", "tasks": ["retrieval"]},
        ]  # fmt: skip

    files = StoreFiles(local_store.config(tmp_path, None))
    here = named_sets(suite(tmp_path, *entries(str(root))), files)
    there = named_sets(suite(tmp_path, *entries("s3://sets/a")), files)
    assert [one.identity for one in there] == [one.identity for one in here]
    assert len({one.identity for one in here}) == 5 and there[-1].sha256 == written
    assert list(there[-1].read([1, 0])) == list(here[-1].read([1, 0]))  # by ranges, in any order
    client.delete_object(Bucket="sets", Key="a/tars/classnames.txt")
    with pytest.raises(DataError, match=r"s3://sets/a/tars/classnames\.txt: the names of the classes of tars cannot"):
        named_sets(suite(tmp_path, *entries("s3://sets/a")), files)


def test_a_set_of_our_own_in_s3_that_is_damaged(server, tmp_path, monkeypatch):
    server.use(monkeypatch)
    write_items(tmp_path / "sets", concepts())
    client = put(server, "damaged", tmp_path / "sets")
    store = local_store.config(tmp_path, None)
    entry = {"name": "mine", "path": "s3://damaged/a", "format": "align", "tasks": ["retrieval"]}
    (one,) = named_sets(suite(tmp_path, entry), StoreFiles(store))
    tar = (tmp_path / "sets/mine.tar").read_bytes()
    client.put_object(Bucket="damaged", Key="a/mine.tar", Body=tar + b"\0")
    with pytest.raises(DataError, match=r"s3://damaged/a/mine\.tar: it was replaced while it was read"):
        list(one.read())
    with pytest.raises(CorruptError, match=r"s3://damaged/a/mine\.tar: sha256 differs"):
        named_sets(suite(tmp_path, entry), StoreFiles(store))
    client.delete_object(Bucket="damaged", Key="a/mine.tar")
    with pytest.raises(DataError, match=r"s3://damaged/a/mine\.tar: missing, although mine\.json describes it"):
        named_sets(suite(tmp_path, entry), StoreFiles(store))
    client.delete_object(Bucket="damaged", Key="a/mine.json")
    with pytest.raises(DataError, match=r"s3://damaged/a/mine\.json: no such object"):
        named_sets(suite(tmp_path, entry), StoreFiles(store))


def test_ratings_are_read_from_s3(server, tmp_path, monkeypatch):
    server.use(monkeypatch)
    folder = tmp_path / "published"
    folder.mkdir()
    ratings(folder, captioned())
    client = put(server, "published", folder)
    base = "s3://published/a"
    one = captioned(tasks=["retrieval", "cxc"], ratings=base)
    files = StoreFiles(local_store.config(tmp_path, None))
    found = read_ratings(one, files)
    local = captioned(tasks=["retrieval", "cxc"], ratings=str(folder))
    assert found is not None and repr(found) == repr(read_ratings(local, files))
    client.delete_object(Bucket="published", Key="a/sis_test.csv")
    with pytest.raises(DataError, match=r"c: cxc: s3://published/a/sis_test\.csv: the ratings cannot be read"):
        read_ratings(one, files)
