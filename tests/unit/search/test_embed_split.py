"""`align embed SHARDS --split train`: every image and text of a split, in order, under one digest."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.errors import CorruptError, DataError
from align.formats.model_folder import TOKENIZER_FOLDER
from align.formats.shards import Sample, iter_samples, read_manifest
from align.formats.stored_embeds import EmbedsManifest, read_embeds
from align.model.embedder import Embedder
from align.search import embed_split as module
from tests.support import tiny_model, training_data
from tests.support.params import PARAMS_FILE
from tests.support.shard_folder import write_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and a model beside them."""
    root = tmp_path_factory.mktemp("root")
    training_data.write(root)
    tiny_model.write(root)
    return root


@pytest.fixture(scope="module")
def embedder(root: Path) -> Embedder:
    return Embedder.load(root / "model")


def embed(root: Path, embedder: Embedder, out: Path, **changes: str) -> EmbedsManifest:
    return module.embed_split(
        root / "shards", "train", embedder=embedder, model_digest=changes.get("by", "mine"), out=out
    )


def count_parts(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files of parts that are written from now on."""
    write = module.write_bytes
    written: list[str] = []

    def counted(path: Path, data: bytes) -> None:
        written.append(path.name)
        write(path, data)

    patch.setattr(module, "write_bytes", counted)
    return written


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_are_those_of_the_samples_and_their_texts(root: Path, embedder: Embedder, tmp_path: Path) -> None:
    manifest = embed(root, embedder, tmp_path / "out")
    rows = list(iter_samples(root / "shards", "train"))
    assert (manifest.num_images, manifest.num_pairs, manifest.width) == (24, 48, 16)
    assert manifest.shards_digest == read_manifest(root / "shards").digest
    assert manifest.temperature == pytest.approx(0.1)
    stored, out = read_embeds(tmp_path / "out"), np.empty((2, 16), dtype=np.float16)
    for number in (0, 11, 12, 23):  # both tars
        for text in (0, 1):
            stored.read(number, text, out)
            np.testing.assert_allclose(out[0], embedder.embed_images([rows[number].image])[0], atol=1e-3)
            np.testing.assert_allclose(out[1], embedder.embed_texts([rows[number].texts[text]])[0], atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["out"]


def test_a_killed_run_resumes_and_ends_with_the_same_bytes(
    root: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embed(root, embedder, tmp_path / "whole")

    class Killed(BaseException):
        pass

    write = module.write_bytes
    written: list[str] = []

    def write_four(path: Path, data: bytes) -> None:
        if len(written) == 4:  # the second part has its images, and not yet its texts
            raise Killed
        written.append(path.name)
        write(path, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "write_bytes", write_four)
        embed(root, embedder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        again = count_parts(patch)
        assert embed(root, embedder, tmp_path / "out") == whole
        assert [name[:6] for name in again] == ["000001"] * 3  # the first part is kept
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        again.clear()
        assert embed(root, embedder, tmp_path / "out") == whole and not again  # and what is whole is not made again


def test_two_at_once_do_the_work_once(
    root: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = count_parts(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: embed(root, embedder, tmp_path / "out"), range(2))
    assert one == other and len(written) == 6  # two tars


def test_damaged_output_is_made_again_and_anothers_folder_is_not_touched(
    root: Path, embedder: Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    whole = embed(root, embedder, out)
    before = content(out)
    with (out / "texts.npy").open("r+b") as file:
        file.truncate(200)
    assert embed(root, embedder, out) == whole and content(out) == before
    with pytest.raises(DataError, match="not from this split and this model; remove it or choose another"):
        embed(root, embedder, out, by="another")
    assert content(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(DataError, match=r"has content, and no \.align\.json"):
        embed(root, embedder, tmp_path / "mine")
    assert content(tmp_path / "mine") == {"notes.txt": b"keep"}


def test_shards_that_cannot_be_embedded_are_named(root: Path, embedder: Embedder, tmp_path: Path) -> None:
    broken = Sample("000000007", "0" * 64, b"no picture", ("000000007",), ("a red bar",))
    write_shards(tmp_path / "shards", {"train": [training_data.samples(2), [broken]]}, image_px=36)
    with pytest.raises(CorruptError, match=r"train/00001\.tar: sample 000000007: "):
        embed(tmp_path, embedder, tmp_path / "out")
    with pytest.raises(DataError, match="split val holds no images"):
        module.embed_split(tmp_path / "shards", "val", embedder=embedder, model_digest="mine", out=tmp_path / "out")
    with pytest.raises(DataError, match=r"manifest\.json: no such file; run `align shard` first"):
        embed(tmp_path / "gone", embedder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_a_packaged_model_and_says_the_digest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packaged/artifacts").mkdir(parents=True)
    shutil.copytree(root / "model", tmp_path / "packaged/artifacts/finetuned")
    assert (tmp_path / "packaged/artifacts/finetuned" / TOKENIZER_FOLDER).is_dir()

    def run(*words: str) -> tuple[int, str]:
        code = main(["embed", str(root / "shards"), "--split", "train", *words, "--params", str(PARAMS_FILE)])
        return code, capsys.readouterr().err

    code, said = run("--model", "packaged", "--out", "teacher")
    digest = read_embeds(tmp_path / "teacher").manifest.digest
    assert code == 0 and f"embed: 24 images and 48 texts -> teacher, digest {digest}" in said
    code, said = run("--model", "packaged", "--out", "other", "--column", "text")
    assert code == 1 and "--column text: a split of shards has no columns" in said
    code, said = run("--model", "gone", "--out", "other")
    assert code == 1 and len(said.splitlines()) == 1 and "gone" in said
    code, said = run("--model", "packaged", "--out", str(root / "shards/inside"))
    assert code == 1 and "would replace, or lie in, the input" in said
