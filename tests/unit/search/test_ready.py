"""A ready search: smaller weights that embed alike, and no byte of it used unless the manifest has it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from align.arguments.commands import READY
from align.errors import CorruptError, DataError, FormatError
from align.formats.image_index import ImageIndex
from align.formats.model_folder import model_digest, read_config, read_weights, write_model_folder
from align.formats.ready import open_ready
from align.model.embedder import Embedder
from align.search import ready
from align.search.ready import MAX_BYTES, MAX_DIFFERENCE, Run, compare, make_ready, revision_of
from align.search.search import Query, open_index, search
from align.search.service.fetched import ReadySearch
from align.services.vector_index import VectorIndex
from tests.support import ROOT, colour_index, tiny_model

RUN = Run(revision="abc", dvc_lock="ghi", package_digest="def")


def write_index(root: Path, *, thumbnail_px: int = 32) -> tuple[Path, Path]:
    """A model and its index."""
    model = tiny_model.write(root)
    colour_index.build(root, encoder=Embedder.load(model), model_digest=model_digest(model), thumbnail_px=thumbnail_px)
    return model, root / "index"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ready")
    model, images = write_index(root)
    make_ready(model=model, index=images, out=root / "ready", run=RUN)
    shutil.rmtree(root / "shards")
    return root


def test_it_answers_as_the_trained_model_does_and_shows_pictures_without_shards(made: Path) -> None:
    found = open_ready(made / "ready")
    assert found.manifest.precision == "float16" and found.manifest.made_from.revision == "abc"
    assert found.manifest.made_from.num_images == 12 and found.manifest.made_from.package_digest == "def"
    assert found.manifest.made_from.dvc_lock == "ghi"
    assert found.manifest.made_from.model_digest == model_digest(made / "model") != model_digest(found.model)
    assert 0 < found.manifest.largest_difference <= MAX_DIFFERENCE and found.manifest.same_of_ten > 0.9
    assert (found.model / "model.safetensors").stat().st_size < 0.6 * (made / "model/model.safetensors").stat().st_size
    images = open_index(found.index, model_digest(found.model))
    before = open_index(made / "index", model_digest(made / "model"))
    for text in tiny_model.TEXTS:
        answers = [
            search(Query(text=text), index=one, encoder=Embedder.load(model), text_weight=2.0, num_results=3)
            for one, model in ((images, found.model), (before, made / "model"))
        ]
        assert [hit.item for hit in answers[0]] == [hit.item for hit in answers[1]]
        assert all(images.thumbnail(hit.item.key).startswith(b"\xff\xd8") for hit in answers[0])


def test_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    again = make_ready(model=made / "model", index=made / "index", out=tmp_path / "ready", run=RUN)
    assert again.manifest == open_ready(made / "ready").manifest


def test_what_serves_it_knows_the_run_that_made_it(made: Path, tmp_path: Path) -> None:
    release = ReadySearch(made / "ready").wanted()
    assert release is not None and release.version is None
    digest = open_ready(made / "ready").manifest.made_from.shards_digest
    assert release.tags == {
        "align.model_digest": "def", "align.data_digest": digest, "align.git_revision": "abc", "align.dvc_lock": "ghi",
    }  # fmt: skip
    assert ReadySearch(tmp_path).wanted() is None


@pytest.mark.parametrize("name", ["model/model.safetensors", "index/thumbnails.jpegs", "index/index.json"])
def test_a_changed_file_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made / "ready", tmp_path / "ready"))
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good[:-1])
    with pytest.raises(CorruptError, match=rf"{name}: .* bytes, not .*align ready"):
        open_ready(folder)
    (folder / name).write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CorruptError, match=f"{name}: its bytes have changed"):
        open_ready(folder)
    (folder / name).unlink()
    with pytest.raises(CorruptError, match=f"{name}: missing"):
        open_ready(folder)


def test_a_file_more_and_manifests_that_lie(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "ready", tmp_path / "ready"))
    (folder / "model/pickle.bin").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"pickle.bin: not in manifest.json"):
        open_ready(folder)
    (folder / "model/pickle.bin").unlink()
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    outside = {"../../../etc/passwd": {"size_bytes": 1, "sha256": ""}}
    manifest.write_text(json.dumps(document | {"files": document["files"] | outside}))
    with pytest.raises(CorruptError, match="passwd: missing"):
        open_ready(folder)
    for text in ("{}", "[", json.dumps(document | {"schema_version": 1}), json.dumps(document | {"files": {"a": 1}})):
        manifest.write_text(text)
        with pytest.raises(FormatError, match=r"run `align ready`"):
            open_ready(folder)
    manifest.unlink()
    with pytest.raises(DataError, match="no ready search here"):
        open_ready(folder)


def test_weights_that_float16_would_change_stay_as_they_are(made: Path, tmp_path: Path) -> None:
    """A weight beyond float16's range becomes infinite there."""
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    weights = read_weights(model)
    weights["text_projection.weight"] = weights["text_projection.weight"] * 1e7
    write_model_folder(read_config(model), weights, model)
    found = open_index(made / "index", model_digest(made / "model"))
    folder = tmp_path / "part"
    precision, difference = ready._write_model(model, found, folder)
    assert precision == "float32" and difference.largest == 0
    assert torch.equal(read_weights(folder)["text_projection.weight"], weights["text_projection.weight"])
    assert compare(Embedder.load(model), Embedder.load(folder), found).largest == 0


def test_what_cannot_become_a_ready_search(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(model: Path, images: Path) -> None:
        make_ready(model=model, index=images, out=tmp_path / "ready", run=Run(None, None, None))

    with pytest.raises(DataError, match="another model"):
        make(tiny_model.write(tmp_path / "other", seed=1), made / "index")
    with pytest.raises(DataError, match=r"no thumbnails; set index.thumbnail_px"):
        make(*write_index(tmp_path / "none", thumbnail_px=0))
    monkeypatch.setattr(ready, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"would have .* MB, more than 0 MB"):
        make(made / "model", made / "index")
    assert not (tmp_path / "ready").exists()


def test_what_the_run_writes_makes_no_revision_dirty_and_an_edit_does(tmp_path: Path) -> None:
    root = tmp_path / "a folder"
    root.mkdir()
    assert revision_of(root, Path("ready")) is None

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *who, *words], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    (root / "code.py").write_text("1")
    (root / "ready").mkdir()
    (root / "ready/manifest.json").write_text("{}")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "code")
    head = git("rev-parse", "HEAD")
    (root / "dvc.lock").write_text("new")
    (root / "ready/manifest.json").write_text("another")
    (root / "ready/more").write_text("x")
    assert revision_of(root, Path("ready")) == revision_of(root, root / "ready") == head
    assert revision_of(root, Path("elsewhere")) == f"{head}-dirty"
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message", "lock", "dvc.lock")
    (root / "dvc.lock").write_text("changed")
    assert revision_of(root, Path("ready")) == git("rev-parse", "HEAD")
    (root / "code.py").write_text("2")
    assert revision_of(root, Path("ready")) == f"{git('rev-parse', 'HEAD')}-dirty"


def test_it_is_whole_and_finds_what_it_should() -> None:
    folder = ROOT / READY
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    ready = open_ready(folder)
    index = ImageIndex.load(ready.index, VectorIndex.load)
    assert index.header.model_digest == model_digest(ready.model)
    assert index.header.num_items == ready.manifest.made_from.num_images > 1000
    query = Embedder.load(ready.model).embed_texts(["red heart"])[0]
    hits = index.search(query, 5)
    assert any("heart" in " ".join(hit.item.texts) for hit in hits)
    assert index.thumbnail(hits[0].item.key).startswith(b"\xff\xd8")
