"""The embedder: order, batches, and a model that does not belong to the tokenizer."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from align.errors import DataError
from align.formats.model_folder import model_digest, tokenizer_of
from align.model.embedder import Embedder
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from tests.support import small_model, training_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model.write(tmp_path_factory.mktemp("model"))


def test_rows_follow_the_inputs_whatever_the_batch(folder: Path) -> None:
    embedder = Embedder.load(folder)
    texts = ["a fox " * (1 + n % 7) + "owl" * (n % 3) for n in range(70)]
    together = embedder.embed_texts(texts)
    assert together.shape == (70, embedder.width) and together.dtype == np.float32
    np.testing.assert_allclose(together[41:42], embedder.embed_texts(texts[41:42]), atol=1e-5)
    images = [sample.image for sample in training_data.samples(66)]
    embeds = embedder.embed_images(images)
    np.testing.assert_allclose(embeds[65:], embedder.embed_images(images[65:]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1.0, atol=1e-5)


def test_nothing_in_nothing_out(folder: Path) -> None:
    embedder = Embedder.load(folder)
    assert embedder.embed_images([]).shape == (0, embedder.width)
    assert embedder.embed_texts([]).shape == (0, embedder.width)


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    other = fit_wordpiece(["one two"], vocab_size=20, min_count=1)
    save_tokenizer(other, tokenizer_of(tmp_path / "model"), max_tokens=8)
    with pytest.raises(DataError, match="not the tokenizer it was trained with"):
        Embedder.load(tmp_path / "model")


def test_the_tokenizer_decides_the_digest(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    assert model_digest(tmp_path / "model") == model_digest(folder)
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert model_digest(tmp_path / "model") != model_digest(folder)


def test_a_folder_of_an_earlier_version_has_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    line = (
        r"model: the model has no tokenizer \(tokenizer/tokenizer.json is missing\); run the stage .*, or copy .* to "
    )
    for read in (Embedder.load, model_digest):
        with pytest.raises(DataError, match=line):
            read(tmp_path / "model")
