from dataclasses import replace

import pytest

from align.errors import ConfigError
from align.evaluate.fine_tuning.recipe import FINE_GRAINED, IMAGENET, small


def test_imagenet_is_the_papers() -> None:
    head, both = IMAGENET.phases
    per_epoch = 1_281_167 / 1024
    assert (head.head_rate, head.tower_rate, both.head_rate, both.tower_rate) == (0.1, 0.0, 0.01, 0.001)
    assert [phase.length(per_epoch) for phase in IMAGENET.phases] == [125_114, 125_114]
    starts = [round(epoch * per_epoch) + 1 for epoch in (0, 29, 30, 60, 90)]
    assert [both.scale(step, per_epoch) for step in starts] == pytest.approx([1, 1, 0.2, 0.04, 0.008])
    assert (head.train_px, both.train_px, IMAGENET.test_px, IMAGENET.weight_decay) == (289, 475, 600, 0.0)


def test_the_fine_grained_recipe_is_the_papers() -> None:
    head, both = FINE_GRAINED.phases
    assert [phase.head_rate for phase in FINE_GRAINED.phases] == [1e-2, 1e-3]
    assert (head.tower_rate, both.tower_rate) == (0.0, 1e-3)
    assert sum(phase.length(3.5) for phase in FINE_GRAINED.phases) == 20_000
    assert [both.scale(step, 3.5) for step in (0, 5000, 10_000)] == pytest.approx([1.0, 0.5, 0.0])
    assert (FINE_GRAINED.freeze_statistics, FINE_GRAINED.num_runs, FINE_GRAINED.weight_decay) == (True, 3, 1e-5)


def test_small_keeps_the_shape() -> None:
    recipe = small(IMAGENET, image_px=64, num_epochs=10, batch_size=32)
    assert [phase.length(5.0) for phase in recipe.phases] == [50, 50]
    assert [recipe.phases[1].scale(step, 5.0) for step in (0, 14, 15, 45)] == pytest.approx([1, 1, 0.2, 0.008])
    assert {phase.train_px for phase in recipe.phases} == {64}
    assert recipe.test_px == 64  # a small tower is lost at another size
    assert small(FINE_GRAINED, image_px=64, num_epochs=10, batch_size=32).phases[0].length(5.0) == 50


def test_a_crop_is_as_large_a_share_as_in_pre_training() -> None:
    assert [IMAGENET.view(size).square_px for size in (289, 475, 1)] == [346, 569, 1]
    assert replace(IMAGENET, crop=64 / 72).view(64).square_px == 72


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"phases": ()}, {"weight_decay": -1.0}, {"test_px": 0}, {"num_runs": 0}, {"crop": 1.5},
     {"phases": (replace(IMAGENET.phases[0], num_epochs=None),)},
     {"phases": (replace(IMAGENET.phases[0], head_rate=0),)}],
)  # fmt: skip
def test_a_recipe_without_sense_is_one_line(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be positive") as caught:
        replace(IMAGENET, **wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
