"""Half a surrogate pair, which JSON can write and the name of a file can have, is in no set that is read."""

import json
from importlib import import_module

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.infrastructure import StoreConfig
from align.config.suite import SuiteSet
from align.formats.sample_texts import texts_in
from align.services.files.files import StoreFiles
from tests.support.colours import square
from tests.support.params import load_params
from tests.support.tars import tar

HALF = "a \ud83d fox"


def opened(module, **entry):
    """The set, and all that it says as JSON."""
    read = import_module(f"align.formats.evaluation_sets.{module}").read
    one = read(SuiteSet.model_validate({"name": "odd", **entry}), StoreFiles(load_params().section(StoreConfig)))
    said = [one.classes, one.unusable, [(image.key, image.concept, image.label, image.texts) for image in one.images]]
    json.dumps(said, ensure_ascii=False).encode()
    assert len(list(one.pictures(range(len(one.images))))) == len(one.images) == 2
    return one


def _coco(root):
    (root / "x.jpg").write_bytes(square("red"))
    images = [{"id": 1, "file_name": "x.jpg"}, {"id": 2, "file_name": "y\ud83d.jpg"}]
    texts = [{"image_id": 1, "caption": HALF}, {"image_id": 2, "caption": "b"}, {"image_id": 3, "caption": HALF}]
    (root / "captions_val.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return {"format": "coco", "path": str(root / "captions_val.json"), "images": str(root), "tasks": ["retrieval"]}


def _folder(root):
    for name in ("cat", "d\udcff"):
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / "\udcfe.jpg").write_bytes(square("red"))
    (root / "names.json").write_text(json.dumps({"cat": HALF, "d\udcff": "dog"}))
    return {"format": "folder", "path": str(root), "classnames": str(root / "names.json"), "tasks": ["zero_shot"]}


def _hub(root):
    label = {"_type": "ClassLabel", "names": [HALF, "b"]}
    meta = {b"huggingface": json.dumps({"info": {"features": {"label": label}}}).encode()}
    table = pa.table({"image": [{"bytes": square("red"), "path": None}] * 2, "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata(meta), root / "test.parquet")
    return {"format": "parquet", "path": str(root / "test.parquet"), "tasks": ["zero_shot"]}


def _tar(root):
    (root / "test").mkdir()
    (root / "test/nshards.txt").write_text("1")
    picture = square("red")
    tar(root / "test/0.tar", {"a\udcff.jpg": picture, "a\udcff.txt": b"a", "b.jpg": picture, "b.txt": b"b"})
    return {"format": "webdataset", "path": str(root), "tasks": ["retrieval"]}


@pytest.mark.parametrize(("module", "write"), [
    ("captions", _coco), ("folder", _folder), ("hub_parquet", _hub), ("webdataset_tars", _tar),
])  # fmt: skip
def test_a_set_holds_none(tmp_path, module, write):
    opened(module, **write(tmp_path))


def test_the_texts_of_a_sample_hold_none():
    assert texts_in(json.dumps({"caption": [HALF, "\udcff"]}).encode()) == ["a fox"]
