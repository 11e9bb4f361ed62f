import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.compositional import (
    choices,
    choose_right,
    in_groups,
    winoground,
)
from tests.golden import clip_benchmark_figures

DRAWS = {"num_resamples": 200, "seed": 0}


def test_sugar_crepe_wants_strictly_greater() -> None:
    right = np.array([0.5, 0.5, 0.5, 0.5, 0.9])
    wrong = np.array([0.4, 0.5, 0.6, 0.1, 0.2])
    kinds = ["add_att", "add_att", "swap_obj", "swap_obj", "swap_obj"]
    found = in_groups(right, wrong, kinds, [0, 0, 1, 2, 3], **DRAWS)
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {"add_att/accuracy": 1 / 2, "swap_obj/accuracy": 2 / 3, "accuracy": 3 / 5, "mean_per_group": 7 / 12}
    )
    assert all(score.chance == 0.5 for score in found.values())


def test_rows_of_one_image_are_drawn_together() -> None:
    right = np.tile([1.0, 1.0, -1.0], 40).repeat(5)
    apart = in_groups(right, np.zeros(600), ["swap_att"] * 600, range(600), **DRAWS)["accuracy"]
    together = in_groups(right, np.zeros(600), ["swap_att"] * 600, np.arange(600) // 5, **DRAWS)["accuracy"]
    assert together.high - together.low > 1.8 * (apart.high - apart.low)


def test_groups_that_are_not_kept_are_out_of_the_mean_only() -> None:
    names = ["on_near"] * 30 + ["big_red"] * 24
    right = np.array([1.0] * 15 + [-1.0] * 15 + [1.0] * 24)
    found = in_groups(right, np.zeros(54), names, range(54), kept={"on_near"}, **DRAWS)
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {"on_near/accuracy": 0.5, "accuracy": 39 / 54, "mean_per_group": 0.5}
    )
    every = in_groups(right, np.zeros(54), names, range(54), **DRAWS)
    assert every["mean_per_group"].value == 0.75
    with pytest.raises(DataError, match="no group is left for the mean; the largest, on_near, has 30 rows"):
        in_groups(right, np.zeros(54), names, range(54), kept=(), **DRAWS)


def test_order_is_one_of_five_and_a_tie_is_wrong() -> None:
    rows = np.array([[5, 1, 2, 3, 4], [4, 1, 2, 3, 4], [1, 2, 0, 0, 0], [0, -1, -1, -1, -1.0]])
    score = choices(rows, range(4), **DRAWS)["accuracy"]
    assert (score.value, score.chance) == (0.5, 0.2)


def test_winoground_by_hand() -> None:
    examples = np.array([
        [[0.9, 0.1], [0.2, 0.8]],  # all right
        [[0.9, 0.1], [0.95, 0.96]],  # caption 1 is nearer to image 0 than caption 0: text wrong
        [[0.5, 0.6], [0.1, 0.9]],  # caption 0 is nearer to image 1 than to its own: image wrong
        [[0.5, 0.5], [0.5, 0.5]],  # nothing is strictly greater
    ])  # fmt: skip
    found = winoground(examples, **DRAWS)
    assert {name: score.value for name, score in found.items()} == {
        "text_score": 0.5,
        "image_score": 0.5,
        "group_score": 0.25,
    }


def test_winoground_equals_clip_benchmark() -> None:
    golden = json.loads(clip_benchmark_figures.FILE.read_text())["winoground"]
    images, captions = clip_benchmark_figures.choice_inputs()
    similarity = np.einsum("ncw,niw->nci", captions.reshape(-1, 2, 4), images.reshape(-1, 2, 4))
    found = winoground(similarity, **DRAWS)
    assert [found[name].value for name in ("text_score", "image_score", "group_score")] == pytest.approx(
        [golden[name] for name in ("text_acc", "image_acc", "acc")], abs=1e-6
    )


def test_chances_are_those_of_random_scores() -> None:
    rng = np.random.default_rng(0)
    for name, score in winoground(rng.random((20_000, 2, 2)), num_resamples=2, seed=0).items():
        assert score.value == pytest.approx(score.chance, abs=0.01), name
    order = choices(rng.random((20_000, 5)), range(20_000), num_resamples=2, seed=0)["accuracy"]
    assert order.value == pytest.approx(order.chance, abs=0.01)


@pytest.mark.parametrize("shape", [(0, 2), (3, 1), (3,), (3, 2, 2)])
def test_shapes_without_a_choice(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="two or more choices"):
        choose_right(np.zeros(shape))


def test_bad_input() -> None:
    ones = np.ones(3)
    with pytest.raises(DataError, match="finite"):
        in_groups(np.array([1, np.nan, 1]), ones, ["a"] * 3, range(3), **DRAWS)
    with pytest.raises(DataError, match=r"\(3,\) similarities of right captions, \(2,\)"):
        in_groups(ones, ones[:2], ["a"] * 3, range(3), **DRAWS)
    with pytest.raises(DataError, match="2 labels for 3 rows"):
        in_groups(ones, ones, ["a"] * 2, range(3), **DRAWS)
    with pytest.raises(DataError, match="2 labels for 3 rows"):
        choices(np.ones((3, 5)), range(2), **DRAWS)
    with pytest.raises(DataError, match="two captions and two images"):
        winoground(np.ones((3, 2, 3)), **DRAWS)
    with pytest.raises(DataError, match="finite"):
        winoground(np.full((3, 2, 2), np.inf), **DRAWS)
    with pytest.raises(DataError, match="nothing was asked"):
        winoground(np.ones((0, 2, 2)), **DRAWS)
