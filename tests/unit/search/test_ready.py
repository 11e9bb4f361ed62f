"""A ready search: smaller weights that embed alike, and no byte of it used unless the manifest has it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from align.arguments.commands import READY
from align.errors import CorruptError, DataError, FormatError
from align.formats.image_index import ImageIndex
from align.formats.model_folder import model_digest, read_config, read_weights, write_model_folder
from align.formats.ready import require_whole
from align.model.embedder import Embedder
from align.search import ready
from align.search.queries import read_queries
from align.search.ready import MAX_BYTES, make_ready
from align.search.service.fetched import ReadySearch
from align.search.surely import ask_held_out, line_for, promised
from align.search.surely_report import surely_metrics
from align.services.vector_index import VectorIndex
from tests.support import ROOT, colour_index, tiny_model


def write_index(root, *, thumbnail_px=32):
    """A model and its index."""
    model = tiny_model.write(root)
    colour_index.build(root, encoder=Embedder.load(model), model_digest=model_digest(model), thumbnail_px=thumbnail_px)
    return model, root / "index"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("ready")
    model, images = write_index(root)
    make_ready(model=model, index=images, out=root / "ready")
    shutil.rmtree(root / "shards")
    return root


def test_it_answers_as_the_trained_model_does_and_shows_pictures_without_shards(made):
    require_whole(made / "ready")
    small = made / "ready/model"
    assert (small / "model.safetensors").stat().st_size < 0.6 * (made / "model/model.safetensors").stat().st_size
    images, before = (
        ImageIndex.load(made / "ready/index", VectorIndex.load),
        ImageIndex.load(made / "index", VectorIndex.load),
    )
    assert images.header.model_digest == model_digest(small) != model_digest(made / "model")
    for text in tiny_model.TEXTS:
        answers = [
            one.search(Embedder.load(model).embed_texts([text])[0], 3)
            for one, model in ((images, small), (before, made / "model"))
        ]
        assert [hit.item for hit in answers[0]] == [hit.item for hit in answers[1]]
        assert all(images.thumbnail(hit.item.key).startswith(b"\xff\xd8") for hit in answers[0])


def test_the_same_bytes_again_and_what_serves_it_knows_them_by_name(made, tmp_path):
    make_ready(model=made / "model", index=made / "index", out=tmp_path / "ready")
    again, release = ReadySearch(tmp_path / "ready").wanted(), ReadySearch(made / "ready").wanted()
    assert again.digest == release.digest
    with pytest.raises(DataError, match=r"there is no ready search in .*: run `align ready`"):
        ReadySearch(tmp_path).wanted()


@pytest.mark.parametrize("name", ["model/model.safetensors", "index/thumbnails.jpegs", "index/index.json"])
def test_a_changed_file_is_refused(made, tmp_path, name):
    folder = Path(shutil.copytree(made / "ready", tmp_path / "ready"))
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good[:-1])
    with pytest.raises(CorruptError, match=rf"{name}: its bytes are not those that manifest.json names; .*align ready"):
        require_whole(folder)
    (folder / name).write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CorruptError, match=f"{name}: its bytes are not those that manifest"):
        require_whole(folder)
    (folder / name).unlink()
    with pytest.raises(CorruptError, match=f"{name}: missing"):
        require_whole(folder)


def test_a_file_more_and_manifests_that_lie(made, tmp_path):
    folder = Path(shutil.copytree(made / "ready", tmp_path / "ready"))
    (folder / "model/pickle.bin").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"pickle.bin: not in manifest.json"):
        require_whole(folder)
    (folder / "model/pickle.bin").unlink()
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    outside = {"../../../etc/passwd": ""}
    manifest.write_text(json.dumps(document | {"sha256": document["sha256"] | outside}))
    with pytest.raises(CorruptError, match="passwd: missing"):
        require_whole(folder)
    for text in ("{}", "[", json.dumps(document | {"schema_version": 2}), json.dumps(document | {"sha256": {"a": 1}})):
        manifest.write_text(text)
        with pytest.raises(FormatError, match=r"run `align ready`"):
            require_whole(folder)
    manifest.unlink()
    with pytest.raises(DataError, match="no ready search here"):
        require_whole(folder)


def test_what_cannot_become_a_ready_search(made, tmp_path, monkeypatch):
    def make(model, images):
        make_ready(model=model, index=images, out=tmp_path / "ready")

    with pytest.raises(DataError, match="another model"):
        make(tiny_model.write(tmp_path / "other", seed=1), made / "index")
    with pytest.raises(DataError, match=r"no thumbnails; set index.thumbnail_px"):
        make(*write_index(tmp_path / "none", thumbnail_px=0))
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    weights = read_weights(model)
    weights["text_projection.weight"] = weights["text_projection.weight"] * 1e7
    write_model_folder(read_config(model), weights, model)
    colour_index.build(tmp_path, encoder=Embedder.load(model), model_digest=model_digest(model), thumbnail_px=32)
    with pytest.raises(DataError, match=r"text_projection\.weight has numbers that float16 does not reach"):
        make(model, tmp_path / "index")
    monkeypatch.setattr(ready, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"would have .* MB, more than 0 MB"):
        make(made / "model", made / "index")
    assert not (tmp_path / "ready").exists()


def test_it_is_whole_and_finds_what_it_should():
    folder = ROOT / READY
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    require_whole(folder)
    index = ImageIndex.load(folder / "index", VectorIndex.load)
    assert index.header.model_digest == model_digest(folder / "model") and index.header.num_items > 1000
    query = Embedder.load(folder / "model").embed_texts(["red heart"])[0]
    hits = index.search(query, 5)
    assert any("heart" in " ".join(hit.item.texts) for hit in hits)
    assert index.thumbnail(hits[0].item.key).startswith(b"\xff\xd8")


def test_it_is_silent_when_nothing_fits():
    """Its promise is that of its held-out texts, kept on the half unseen; benchmarks/surely.py says what it costs."""
    index = ImageIndex.load(ROOT / READY / "index", VectorIndex.load)
    encoder = Embedder.load(ROOT / READY / "model")
    asked = ask_held_out(index, encoder)
    assert asked is not None and index.header.promise.slope == pytest.approx(promised(asked).slope, abs=1e-3)
    metrics = surely_metrics(asked)
    assert 0.08 < metrics["index/surely/0.9/loss"] < 0.12 and 0.22 < metrics["index/surely/0.75/loss"] < 0.28
    assert metrics["index/surely/nauc_gain/low"] > 0
    absent = json.loads((ROOT / "tests/support/absent.json").read_text())
    assert len(absent) == 40

    def num_shown(texts):
        firsts = [index.search(vector, 1)[0].score for vector in encoder.embed_texts(texts)]
        lines = [line_for(index.header.promise, 0.75, split) for split in encoder.splits(texts)]
        return np.count_nonzero(np.array(firsts) >= lines)

    assert num_shown(absent) <= 4
    labelled = [one.query for one in read_queries(ROOT / "data/sample/queries.json").queries]
    assert num_shown(labelled) >= 12  # of 20; it should be 19
