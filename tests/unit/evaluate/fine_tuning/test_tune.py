from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from align.errors import ConfigError, DataError, NonFiniteLossError
from align.evaluate.fine_tuning.pictures import Pictures, TrainingBatches
from align.evaluate.fine_tuning.recipe import FINE_GRAINED, IMAGENET, View, resized, shortened
from align.evaluate.fine_tuning.tune import Machine, fine_tune, tune
from align.evaluate.protocols.labelled import accuracy
from tests.support.colours import square
from tests.support.tuning import MACHINE, RECIPE, content, pictures, tower, tuned

FROZEN = replace(resized(shortened(FINE_GRAINED, 1), 32), batch_size=8, num_runs=1)


def statistics(state):
    return {name: value for name, value in state.items() if "running_" in name}


@pytest.fixture(scope="module")
def whole():
    """What a run gives."""
    return content(tuned())


def before():
    return {f"tower.{name}": value.numpy().tobytes() for name, value in tower().state_dict().items()}


def test_equal_seeds_give_equal_bytes(whole):
    assert content(tuned()) == whole
    assert content(tuned(seed=1)) != whole


def test_the_first_phase_trains_the_head_alone():
    state = content(tuned(replace(RECIPE, phases=RECIPE.phases[:1])))
    assert {name: value for name, value in state.items() if name in before()} == before()


def test_the_second_phase_trains_all_and_estimates_statistics(whole):
    same = [name for name, value in before().items() if whole[name] == value and "num_batches" not in name]
    assert same == []


def test_frozen_statistics_stay_while_all_weights_change():
    state, start = content(tuned(FROZEN)), before()
    assert {name: state[name] for name in statistics(start)} == statistics(start)
    assert all(state[name] != value for name, value in start.items() if name.endswith("weight"))


def test_statistics_are_of_mixed_groups_though_the_pictures_of_a_class_lie_together():
    still = replace(RECIPE, phases=(replace(RECIPE.phases[1], tower_rate=1e-12),))
    split, variances = pictures(), []
    for name, order in (("mixed", np.arange(24)), ("by_class", np.argsort(split.labels, kind="stable"))):
        some = Pictures(name, [split.images[row] for row in order], split.labels[order])
        model = tune(tower(), some, 4, still, seed=0, machine=MACHINE)
        variances.append(float(model.state_dict()["tower.embeddings.batchnorm.running_var"].mean()))
    assert variances[1] > 0.5 * variances[0]


def test_a_step_in_parts_is_the_whole_step(whole):
    other = content(tuned(machine=Machine(part=8, num_threads=2)))
    for name, value in whole.items():
        if name.endswith(("weight", "bias")):
            expected, found = (np.frombuffer(data, dtype=np.float32) for data in (value, other[name]))
            assert found == pytest.approx(expected, abs=1e-3)


def test_runs_have_seeds_of_their_own_and_beat_chance():
    recipe = replace(resized(shortened(FINE_GRAINED, 6), 32), batch_size=8, num_runs=2)
    recipe = replace(recipe, phases=tuple(replace(phase, head_rate=0.5) for phase in recipe.phases))
    splits = pictures(), pictures("test", 40)
    answers = fine_tune(tower, splits, 4, recipe, MACHINE)
    assert len(answers) == 2
    assert accuracy(answers, splits[1], 4, num_resamples=200, seed=0).low > 0.3
    (first,) = fine_tune(tower, splits, 4, replace(recipe, num_runs=1), MACHINE)
    assert first.tobytes() == answers[0].tobytes()


def test_what_does_not_fit_is_one_line():
    for recipe, machine, message in (
        (replace(RECIPE, batch_size=10), MACHINE, r"10 pictures are no multiple of the batch-norm group 4"),
        (RECIPE, Machine(part=6, num_threads=1), r"6 pictures are no multiple of the batch-norm group 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            tuned(recipe, machine=machine)
    with pytest.raises(DataError, match=r"^train: label 3, but there are 3 classes$"):
        tune(tower(), pictures(), 3, RECIPE, seed=0, machine=MACHINE)


def test_a_loss_that_is_not_finite_ends_with_one_line():
    head, both = RECIPE.phases
    wild = replace(RECIPE, phases=(head, replace(both, tower_rate=1e30)))
    with pytest.raises(NonFiniteLossError, match=r"^train: the loss is (nan|inf) at step 5 of fine-tuning; lower"):
        tuned(wild)


def test_imagenet_is_the_papers():
    head, both = IMAGENET.phases
    per_epoch = 1_281_167 / 1024
    assert (head.head_rate, head.tower_rate, both.head_rate, both.tower_rate) == (0.1, 0.0, 0.01, 0.001)
    assert [phase.length(per_epoch) for phase in IMAGENET.phases] == [125_114, 125_114]
    starts = [round(epoch * per_epoch) + 1 for epoch in (0, 29, 30, 60, 90)]
    assert [both.scale(step, per_epoch) for step in starts] == pytest.approx([1, 1, 0.2, 0.04, 0.008])
    assert (head.train_px, both.train_px, IMAGENET.test_px, IMAGENET.weight_decay) == (289, 475, 600, 0.0)


def test_the_fine_grained_recipe_is_the_papers():
    head, both = FINE_GRAINED.phases
    assert [phase.head_rate for phase in FINE_GRAINED.phases] == [1e-2, 1e-3]
    assert (head.tower_rate, both.tower_rate) == (0.0, 1e-3)
    assert sum(phase.length(3.5) for phase in FINE_GRAINED.phases) == 20_000
    assert [both.scale(step, 3.5) for step in (0, 5000, 10_000)] == pytest.approx([1.0, 0.5, 0.0])
    assert (FINE_GRAINED.freeze_statistics, FINE_GRAINED.num_runs, FINE_GRAINED.weight_decay) == (True, 3, 1e-5)


def test_fewer_epochs_at_one_size_keep_the_shape():
    recipe = resized(shortened(IMAGENET, 10), 64)
    assert [phase.length(5.0) for phase in recipe.phases] == [50, 50]
    assert [recipe.phases[1].scale(step, 5.0) for step in (0, 14, 15, 45)] == pytest.approx([1, 1, 0.2, 0.008])
    assert {phase.train_px for phase in recipe.phases} == {64}
    assert recipe.test_px == 64  # a small tower is lost at another size
    assert resized(shortened(FINE_GRAINED, 10), 64).phases[0].length(5.0) == 50


def test_a_crop_is_as_large_a_share_as_in_pre_training():
    assert [IMAGENET.view(size).square_px for size in (289, 475, 1)] == [346, 569, 1]
    assert replace(IMAGENET, crop=64 / 72).view(64).square_px == 72


@pytest.mark.parametrize("wrong", [
    {"batch_size": 0}, {"phases": ()}, {"weight_decay": -1.0}, {"test_px": 0}, {"num_runs": 0}, {"crop": 1.5},
    {"phases": (replace(IMAGENET.phases[0], num_epochs=None),)},
    {"phases": (replace(IMAGENET.phases[0], head_rate=0),)},
])  # fmt: skip
def test_a_recipe_without_sense_is_one_line(wrong):
    with pytest.raises(ConfigError, match="must be positive") as caught:
        replace(IMAGENET, **wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


VIEW = View(32, 36)


def test_every_picture_comes_once_an_epoch_and_batches_are_functions_of_the_step():
    split = replace(pictures(number=20), labels=np.arange(20))
    with ThreadPoolExecutor(2) as pool:
        batches = TrainingBatches(split, 8, 0, pool)
        assert batches.per_epoch == 2.5
        found = list(batches.steps(0, 5, VIEW))
        seen = np.concatenate([labels for _, labels in found])
        assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
        assert list(seen[:20]) != list(seen[20:])
        for (crops, labels), (again, same) in zip(
            found[3:], TrainingBatches(split, 8, 0, pool).steps(3, 5, VIEW), strict=True
        ):
            assert crops.tobytes() == again.tobytes() and (labels == same).all()
        other = [labels for _, labels in TrainingBatches(split, 8, 1, pool).steps(0, 5, VIEW)]
        assert not np.array_equal(seen, np.concatenate(other))
        assert list(batches.steps(5, 5, VIEW)) == []


def test_a_picture_that_does_not_decode_is_one_line():
    split = Pictures("train", [square("red"), b"not a picture"], np.array([0, 1]))
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(DataError, match=r"^train: picture 1: not an image that can be decoded"):
            list(TrainingBatches(split, 2, 0, pool).steps(0, 1, VIEW))
        with pytest.raises(DataError, match=r"^train: picture 1: "):
            split.centre(np.array([0, 1]), VIEW, pool)


@pytest.mark.parametrize("labels", [[0], [0, -1], [0.0, 1.0], [[0, 1]]])
def test_labels_that_do_not_fit_are_one_line(labels):
    with pytest.raises(DataError, match=r"^train: 2 images, labels of shape .*; want one from 0 up for each$"):
        Pictures("train", [b"", b""], np.array(labels))
    with pytest.raises(DataError, match="2 images, but 1 clusters"):
        Pictures("train", [b"", b""], np.array([0, 1]), ["a"])
