"""A page without a server: what is in the folder, what is refused, and that the committed one is today's."""

import hashlib
import io
import json
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from align import publish as module
from align.arguments.commands import READY, SITE
from align.cli import main
from align.errors import DataError
from align.formats.image_index import ImageIndex
from align.formats.model_folder import TOKENIZER, model_digest
from align.model.embedder import Embedder
from align.publish import RUNTIME, browser_tokenizer, publish, read_runtime
from align.search.service.app import PAGE
from align.services.vector_index import VectorIndex
from tests.support import ROOT, colour_index, tiny_model

SAMPLE = ROOT / SITE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, its index, and a page of it on which one picture is taken down."""
    root = tmp_path_factory.mktemp("published")
    model = tiny_model.write(root)
    colour_index.build(root, encoder=Embedder.load(model), model_digest=model_digest(model), thumbnail_px=32)
    index = opened(root)
    gone = index.items[3]
    header = index.header.model_copy(update={"warning": "it may be wrong"})
    shown = replace(index.without([gone.image_id], None), header=header)
    publish(model=model, index=shown, runtime=SAMPLE / "runtime", out=root / "page")
    return root, shown, gone


def opened(root):
    return ImageIndex.load(root / "index", VectorIndex.load)


def parts(data, kind, ending):
    files = sorted((data / kind).iterdir(), key=lambda file: int(file.stem))
    assert all(file.suffix == ending for file in files)
    return [file.read_bytes() for file in files]


def test_it_holds_what_the_index_holds_but_nothing_of_what_is_taken_down(made):
    root, index, gone = made
    about = json.loads((root / "page/about.json").read_text())
    data = root / "page" / about["folder"]
    items = [hit.item for hit in index.search(None, index.num_images)]
    assert about["num_images"] == len(items) == 11 and about["warnings"] == ["it may be wrong"]
    rows = [row for part in parts(data, "rows", ".json") for row in json.loads(part)]
    assert [(row["key"], tuple(row["texts"])) for row in rows] == [(item.key, item.texts) for item in items]
    coarse = np.frombuffer(b"".join(parts(data, "coarse", ".bin")), np.int8).astype(np.int64)
    fine = np.frombuffer(b"".join(parts(data, "fine", ".bin")), "<i2")
    vectors = ((coarse << 16) + fine).reshape(len(items), -1) * about["scale"]
    assert np.allclose(vectors, [index.vector(item.key) for item in items], atol=1e-7)
    [part] = parts(data, "pictures", ".bin")
    start = 4 + struct.unpack("<I", part[:4])[0]
    for item, facts in zip(items, json.loads(part[4:start]), strict=True):
        assert facts["image_id"] == item.image_id and facts["found"][0]["page_url"] == colour_index.PAGE
        start, end = start + facts["size"], start
        assert part[end:start] == index.thumbnail(item.key)
    everything = b"".join(file.read_bytes() for file in (root / "page").rglob("*") if file.is_file())
    assert gone.image_id.encode() not in everything and opened(root).thumbnail(gone.key) not in everything
    assert str(root).encode() not in everything  # nothing says where it was made


def test_only_its_own_folder_is_replaced(made, tmp_path, monkeypatch, capsys):
    root, index, _ = made
    (tmp_path / "homepage").mkdir()
    (tmp_path / "homepage/index.html").write_text("mine")
    given = {"model": root / "model", "index": index, "runtime": SAMPLE / "runtime"}
    with pytest.raises(DataError, match="homepage"):
        publish(**given, out=tmp_path / "homepage")
    assert (tmp_path / "homepage/index.html").read_text() == "mine"
    monkeypatch.chdir(ROOT)
    command = ["publish", "--model", str(root / "model"), "--index", str(ROOT / READY / "index")]
    assert main([*command, "--out", str(tmp_path / "page")]) == 1
    assert "was made with another model than" in capsys.readouterr().err and not (tmp_path / "page").exists()


def test_first_tens_that_differ_are_not_published(made, tmp_path, monkeypatch):
    root, index, _ = made
    monkeypatch.setattr(module, "_SAME", 1.1)
    with pytest.raises(
        DataError, match="not published: as ONNX the first 10 pictures are the same for 100% of 11 texts"
    ):
        publish(model=root / "model", index=index, runtime=SAMPLE / "runtime", out=tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_an_index_that_a_page_cannot_show_is_refused(made, tmp_path):
    root, index, _ = made
    everything = {item.image_id for item in index.items}
    given = {"model": root / "model", "runtime": SAMPLE / "runtime", "out": tmp_path / "page"}
    with pytest.raises(DataError, match="holds no image that is not taken down"):
        publish(index=index.without(everything, None), **given)
    bare = tmp_path / "bare"
    colour_index.build(bare, thumbnail_px=0)
    with pytest.raises(DataError, match=r"no thumbnails; set index\.thumbnail_px"):
        publish(index=opened(bare), **given)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("normalizer", None, "WordPiece, None, BertPreTokenizer"),
        ("model", {"type": "Unigram"}, "Unigram, BertNormalizer"),
        ("added_tokens", [{"content": "[X]", "id": 1, "lstrip": True}], r"token '\[X\]' is matched in a way"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path, part, value, said):
    given = json.loads((ROOT / READY / "model/tokenizer" / TOKENIZER).read_text())
    (tmp_path / TOKENIZER).write_text(json.dumps(given | {part: value}))
    with pytest.raises(DataError, match=said):
        browser_tokenizer(tmp_path / TOKENIZER)


def test_the_runtime_is_that_of_its_digests(tmp_path, monkeypatch):
    files = {name: name.encode() for name in RUNTIME}
    monkeypatch.setattr(module, "RUNTIME", {name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert read_runtime(package) == files
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert read_runtime(tmp_path) == files
    (tmp_path / name).write_bytes(b"another")
    for given, said in (
        (tmp_path, f"{name} is not the one of onnxruntime-web"),
        (tmp_path / "none.tgz", "no onnxruntime for browsers here"),
        (tmp_path / name, "no onnxruntime for browsers here"),
    ):
        with pytest.raises(DataError, match=rf"{said}.*npm pack onnxruntime-web@1\.20\.1"):
            read_runtime(given)


def test_the_page_of_the_sample_is_todays_and_at_most_30_mb():
    files = [file for file in SAMPLE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30_000_000
    own = {file.name: file for file in (*PAGE.iterdir(), *(PAGE / "alone").iterdir()) if file.is_file()}
    stale = [
        name for name, file in own.items() if name != "index.html" and (SAMPLE / name).read_bytes() != file.read_bytes()
    ]
    assert stale == [], "run `make site`"
    [policy] = [line for line in (SAMPLE / "index.html").read_text().splitlines() if "Content-Security-Policy" in line]
    assert (SAMPLE / "index.html").read_text().replace(f"{policy}\n", "") == (PAGE / "index.html").read_text()
    about, index = json.loads((SAMPLE / "about.json").read_text()), opened(ROOT / READY)
    assert about["served"]["model_digest"] == index.header.model_digest and about["num_images"] == len(index.items)
    assert read_runtime(SAMPLE / "runtime").keys() == RUNTIME.keys()
