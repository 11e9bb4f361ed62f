"""The optional filter by image-text similarity, with a tiny model as `align package` lays it out."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from align.config.filter import ModelFile
from align.durable.files import sha256_folder
from align.errors import CorruptError, DataError
from align.filter.decide import packaged_towers, similarities
from align.model.embedder import Embedder
from tests.support import tiny_model
from tests.support.warc_records import picture


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("similarity")
    shutil.copytree(tiny_model.write(root), root / "packaged" / "artifacts" / "finetuned")
    return root / "packaged"


def test_a_packaged_model_measures_pairs(packaged: Path) -> None:
    embedder = Embedder.load(packaged_towers(ModelFile(path=str(packaged), sha256=sha256_folder(packaged))))
    pairs = [("0", picture(90, 60), "a red heart"), ("1", b"no picture", "the yellow sun"), ("2", picture(9, 9), "sun")]
    cosines = list(similarities(pairs, embedder.embed_images, embedder.embed_texts))
    expected = [
        float(np.dot(embedder.embed_images([data])[0], embedder.embed_texts([text])[0])) for _, data, text in pairs[::2]
    ]
    assert cosines[1] == ("1", None)
    assert [cosines[0][1], cosines[2][1]] == pytest.approx(expected, abs=2e-4)
    assert cosines[0][1] != cosines[2][1]


def test_each_image_meets_its_own_text_however_many_there_are() -> None:
    vectors = np.eye(7, dtype=np.float32)

    def embed_images(images: Sequence[bytes]) -> NDArray[np.float32]:
        if b"broken" in images:
            raise DataError("an image does not decode")
        return vectors[[int(data) for data in images]]

    def embed_texts(texts: Sequence[str]) -> NDArray[np.float32]:
        return vectors[[int(text) for text in texts]] * np.float32(0.5)

    pairs = [
        (str(number), str(number % 7).encode() if number % 50 else b"broken", str(number % 3)) for number in range(600)
    ]
    expected = [
        (str(number), None if number % 50 == 0 else 0.5 if number % 7 == number % 3 else 0.0) for number in range(600)
    ]
    assert list(similarities(iter(pairs), embed_images, embed_texts)) == expected
    assert list(similarities([], embed_images, embed_texts)) == []


def test_another_folder_than_the_one_named_is_refused(packaged: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no packaged model here"):
        packaged_towers(ModelFile(path=str(tmp_path), sha256="0" * 64))
    with pytest.raises(CorruptError, match=f"not {'0' * 64}"):
        packaged_towers(ModelFile(path=str(packaged), sha256="0" * 64))
