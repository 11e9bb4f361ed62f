"""Evaluation sets in an S3 bucket are read in place, and are the same as in a folder."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.errors import DataError
from align.formats.evaluation_sets.named import named_sets
from align.services.store import open_files
from tests.support import local_store
from tests.support.s3_server import S3Server, serve
from tests.support.suites import suite
from tests.unit.formats.evaluation_sets.test_captions import karpathy, pictures
from tests.unit.formats.evaluation_sets.test_classes import folder, parquet, tars


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        yield running


def test_sets_in_s3_are_those_in_a_folder(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.use(monkeypatch)
    root = tmp_path / "sets"
    folder(root / "folder"), tars(root / "tars"), parquet(root / "hub")
    pictures(root / "captions/images")
    karpathy(root / "captions/dataset.json")
    client = server._client()
    client.create_bucket(Bucket="sets")
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        client.upload_fileobj(io.BytesIO(file.read_bytes()), "sets", f"a/{file.relative_to(root).as_posix()}")

    def entries(base: str) -> list[dict[str, object]]:
        both = {"tasks": ["zero_shot", "knn"]}
        return [
            {"name": "folder", "path": f"{base}/folder", "format": "folder", **both},
            {"name": "tars", "path": f"{base}/tars", "format": "webdataset", **both},
            {"name": "hub", "path": f"{base}/hub", "format": "parquet", **both},
            {"name": "captions", "path": f"{base}/captions/dataset.json", "format": "karpathy", "tasks": ["retrieval"]},
        ]  # fmt: skip

    files = open_files(local_store.config(tmp_path, None))
    here = named_sets(suite(tmp_path, *entries(str(root))), files)
    there = named_sets(suite(tmp_path, *entries("s3://sets/a")), files)
    assert [one.identity for one in there] == [one.identity for one in here]
    assert len({one.identity for one in here}) == 4
    client.delete_object(Bucket="sets", Key="a/tars/classnames.txt")
    with pytest.raises(DataError, match=r"s3://sets/a/tars/classnames\.txt: the names of the classes of tars cannot"):
        named_sets(suite(tmp_path, *entries("s3://sets/a")), files)
