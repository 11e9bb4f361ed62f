from dataclasses import replace

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled
from align.evaluate.protocols.linear import SMALL, fit
from align.evaluate.protocols.vtab import Range, Trial, draw_trials, slices, vtab

BOOTSTRAP = {"num_resamples": 100, "seed": 0}


def drawn(number: int, seed: int, *, name: str = "train") -> Labelled:
    rng = np.random.default_rng([7, seed])
    centres = np.random.default_rng(1).normal(size=(4, 12))
    labels = rng.integers(0, 4, number)
    return Labelled(name, (centres[labels] + rng.normal(size=(number, 12))).astype(np.float32), labels)


class Known:
    """A fit that answers rightly for a known share of pictures, and remembers what it was asked."""

    def __init__(self, by_trial: dict[float, float], by_seed: dict[int, float]) -> None:
        self.by_trial, self.by_seed = by_trial, by_seed
        self.asked: list[tuple[float, str, str, int]] = []

    def __call__(self, trial: Trial, train: Labelled, held: Labelled, seed: int) -> np.ndarray:
        self.asked.append((trial["rate"], train.name, held.name, seed))
        share = self.by_seed[seed] if held.name == "test" else self.by_trial[trial["rate"]]
        if share < 0:
            raise DataError("diverged")
        return np.where(np.arange(len(held)) < share * len(held), held.labels, -1)


def test_the_best_trial_is_run_three_times_on_all_pictures_and_the_median_counts() -> None:
    train, test = drawn(1300, 0), drawn(100, 1, name="test")
    fitted = Known({0.1: 0.3, 0.2: 0.7, 0.3: 0.7, 0.4: -1}, {0: 0.9, 1: 0.5, 2: 0.6})
    trials = [{"rate": rate} for rate in fitted.by_trial]
    found = vtab((*slices(train), test), 4, fitted, trials, **BOOTSTRAP)
    search = [(rate, "train[:800]", "train[800:1000]", 0) for rate in fitted.by_trial]
    runs = [(0.2, "train[:800] and train[800:1000]", "test", seed) for seed in (0, 1, 2)]
    assert fitted.asked == search + runs
    assert found.tried == [0.3, 0.7, 0.7, -1.0]
    assert (found.trial, found.runs, found.score.value) == ({"rate": 0.2}, [0.9, 0.5, 0.6], 0.6)
    assert np.mean(found.answers == test.labels) == 0.6
    assert found.score.low < 0.6 < found.score.high


def test_the_slices_are_the_first_pictures_in_their_order() -> None:
    train = drawn(1300, 0)
    first, second = slices(train)
    assert (len(first), len(second)) == (800, 200)
    assert np.array_equal(np.concatenate([first.features, second.features]), train.features[:1000])
    with pytest.raises(DataError, match=r"^few: 999 images; VTAB takes the first 1,000$"):
        slices(drawn(999, 0, name="few"))


def test_the_lower_middle_run_is_the_median_of_an_even_number() -> None:
    splits = (*slices(drawn(1000, 0)), drawn(100, 1, name="test"))
    fitted = Known({0.1: 0.5}, {0: 0.9, 1: 0.5})
    assert vtab(splits, 4, fitted, [{"rate": 0.1}], runs=(0, 1), **BOOTSTRAP).score.value == 0.5


def test_trials_come_from_the_search_space() -> None:
    space = {"rate": Range(1e-4, 1.0), "epochs": (5.0, 20.0)}
    trials = draw_trials(space, 400, seed=0)
    assert trials == draw_trials(space, 400, seed=0) != draw_trials(space, 400, seed=1)
    rates = np.array([trial["rate"] for trial in trials])
    assert 1e-4 <= rates.min() < rates.max() <= 1.0
    assert np.mean(rates < 1e-2) == pytest.approx(0.5, abs=0.08)
    assert {trial["epochs"] for trial in trials} == {5.0, 20.0}
    assert len(draw_trials(space, seed=0)) == 50


@pytest.mark.parametrize("values", [(), Range(0.0, 1.0), Range(2.0, 1.0), Range(1.0, float("inf"))])
def test_a_hyper_parameter_without_values_is_one_line(values: Range | tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"^search space: rate has no value"):
        draw_trials({"rate": values}, seed=0)


def test_bad_input_is_one_line() -> None:
    splits = (*slices(drawn(1000, 0)), drawn(100, 1, name="test"))
    with pytest.raises(DataError, match="0 trials; want at least one"):
        draw_trials({"rate": (1.0,)}, 0, seed=0)
    for trials, runs in (([], (0,)), ([{"rate": 0.1}], ())):
        with pytest.raises(DataError, match="want at least one of each"):
            vtab(splits, 4, Known({}, {}), trials, runs=runs, **BOOTSTRAP)
    with pytest.raises(DataError, match="none of 2 trials could be fitted"):
        vtab(splits, 4, Known({0.1: -1, 0.2: -1}, {}), [{"rate": 0.1}, {"rate": 0.2}], **BOOTSTRAP)
    narrow = Labelled("test", np.ones((3, 2)), np.zeros(3, dtype=np.int64))
    with pytest.raises(DataError, match="12 wide, those of test 2"):
        vtab((*splits[:2], narrow), 4, Known({}, {}), [{"rate": 0.1}], **BOOTSTRAP)


def linear(trial: Trial, train: Labelled, held: Labelled, seed: int) -> np.ndarray:
    recipe = replace(SMALL, learning_rate=trial["rate"], epochs=int(trial["epochs"]))
    return fit(train, 4, recipe, decays=[trial["decay"]], seed=seed)[0].answers(held)


def test_a_linear_classifier_over_features_is_one_way_to_fit() -> None:
    splits = (*slices(drawn(1000, 0)), drawn(500, 1, name="test"))
    space = {"rate": Range(1e-4, 1e-1), "decay": Range(1e-5, 1e-1), "epochs": (1.0, 3.0)}
    trials = draw_trials(space, 5, seed=0)
    first, again = (vtab(splits, 4, linear, trials, **BOOTSTRAP) for _ in range(2))
    assert first.score.low > 0.8
    assert first.answers.tobytes() == again.answers.tobytes()
    assert (first.trial, first.runs) == (again.trial, again.runs)
