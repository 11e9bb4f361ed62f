"""The embedder: order, batches, and a model that does not belong to the tokenizer."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from align.errors import DataError
from align.model.embedder import Embedder
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from tests.support import small_model, training_data


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_model.write(tmp_path_factory.mktemp("model"))


def test_rows_follow_the_inputs_whatever_the_batch(folders: tuple[Path, Path]) -> None:
    embedder = Embedder.load(*folders)
    texts = ["a fox " * (1 + n % 7) + "owl" * (n % 3) for n in range(70)]
    together = embedder.embed_texts(texts)
    assert together.shape == (70, embedder.width) and together.dtype == np.float32
    np.testing.assert_allclose(together[41:42], embedder.embed_texts(texts[41:42]), atol=1e-5)
    images = [sample.image for sample in training_data.samples(66)]
    embeds = embedder.embed_images(images)
    np.testing.assert_allclose(embeds[65:], embedder.embed_images(images[65:]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1.0, atol=1e-5)


def test_nothing_in_nothing_out(folders: tuple[Path, Path]) -> None:
    embedder = Embedder.load(*folders)
    assert embedder.embed_images([]).shape == (0, embedder.width)
    assert embedder.embed_texts([]).shape == (0, embedder.width)


def test_another_tokenizer_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "model")
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(fit_wordpiece(["one two"], vocab_size=20, min_count=1), tmp_path / "tokenizer", max_tokens=8)
    with pytest.raises(DataError, match="not the tokenizer it was trained with"):
        Embedder.load(tmp_path / "model", tmp_path / "tokenizer")
