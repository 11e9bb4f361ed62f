"""Embeddings are kept between runs; what becomes of damaged files and full disks: formats/test_features.py."""

from dataclasses import replace

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.embed import embed_pictures
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from tests.support.colours import COLOURS, ColourEncoder, square


class Counting(ColourEncoder):
    """Counts what it embeds, and can be killed after a number of pictures."""

    def __init__(self, killed_after=None):
        self.num_embedded, self.killed_after = 0, killed_after

    def embed_crops(self, crops):
        rows = list(crops)
        self.num_embedded += len(rows)
        if self.killed_after is not None and self.num_embedded > self.killed_after:
            raise KeyboardInterrupt
        return super().embed_crops(rows)


def colour_set(num_shades=3):
    shades = [(name, shade) for shade in range(num_shades) for name in COLOURS]
    items = [EvaluationImage(f"{name}{shade}", name, (name,), None, "query") for name, shade in shades]
    pictures = held([square(name, shade=10 * shade) for name, shade in shades])
    return EvaluationSet("colours", "retrieval", "", items, (), (), pictures)


@pytest.mark.usefixtures("any_blocks")
def test_a_second_run_embeds_nothing_and_gives_the_same_bytes(tmp_path):
    cold, warm = Counting(), Counting()
    without = embed_pictures(colour_set(), ColourEncoder())
    first = embed_pictures(colour_set(), cold, tmp_path)
    second = embed_pictures(colour_set(), warm, tmp_path)
    assert (cold.num_embedded, warm.num_embedded) == (12, 0)
    assert without[0] == first[0] == second[0] == list(range(12))
    assert without[1].tobytes() == first[1].tobytes() == second[1].tobytes()
    np.testing.assert_allclose(np.linalg.norm(first[1], axis=1), 1, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(colour_set(), Counting(killed_after=9), tmp_path)
    resumed = Counting()
    whole = embed_pictures(colour_set(), ColourEncoder())
    assert embed_pictures(colour_set(), resumed, tmp_path)[1].tobytes() == whole[1].tobytes()
    assert resumed.num_embedded == 3


def test_embeddings_that_are_not_finite_are_refused_and_not_kept(tmp_path):
    class Diverged(ColourEncoder):
        def embed_crops(self, crops):
            embeds = super().embed_crops(crops)
            embeds[-1, 0] = np.nan
            return embeds

    with pytest.raises(DataError, match="colours: the embeddings are not finite"):
        embed_pictures(colour_set(), Diverged(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_that_do_not_decode_are_told_in_every_run(tmp_path):
    one = replace(colour_set(1), pictures=held([b"no picture", *(square(name) for name in list(COLOURS)[1:])]))
    for _ in range(2):
        positions, embeds, faults = embed_pictures(one, ColourEncoder(), tmp_path)
        assert positions == [1, 2, 3] and len(embeds) == 3
        assert faults == {0: "not an image that can be decoded"}


def test_equal_pictures_have_one_embedding_each(tmp_path):
    one = replace(colour_set(1), pictures=held([square("red")] * 4))
    assert embed_pictures(one, ColourEncoder(), tmp_path)[0] == [0, 1, 2, 3]
