"""The protocol of VTAB, the Visual Task Adaptation Benchmark (Zhai et al., arXiv 1910.04867), as the paper uses it.

Of each task 1,000 pictures are training pictures: hyper-parameters are tried on the first 800 and judged on the other
200, the best ones are used on all 1,000, three times with other seeds, and the median of the three test accuracies
counts. The paper tries 50 sets of hyper-parameters (section 5). How a trial is fitted, and what is searched, are
parameters: a linear classifier over features, or fine-tuning of the whole tower.

The exact slices are `train[:800]` and `train[800:1000]` of each task's published order. Tasks whose slices lie
elsewhere (SmallNORB, dSprites, EuroSAT) are given as they lie.

Ties: the first of equally accurate trials is taken. With an even number of runs the median is the lower of the two in
the middle, so that it is the accuracy of one run. Equal seeds give equal trials; the fit decides about the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.display.console import say
from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled, accuracy, require_one_width
from align.evaluate.protocols.recall import Score

NUM_TRAIN, NUM_VALIDATION, NUM_TRIALS, RUNS = 800, 200, 50, (0, 1, 2)

#: Name of a hyper-parameter -> its value.
Trial = Mapping[str, float]
#: Fits a trial on the first split and answers the second, with a seed: (num_answers,) classes.
Fit = Callable[[Trial, Labelled, Labelled, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Range:
    """Values between two bounds, each order of magnitude as likely as another. Bounds are positive."""

    low: float
    high: float


#: Name of a hyper-parameter -> the values that it may have.
SearchSpace = Mapping[str, Range | Sequence[float]]


def draw_trials(space: SearchSpace, number: int = NUM_TRIALS, *, seed: int) -> list[Trial]:
    """Random search: each hyper-parameter is drawn by itself.

    Raises:
        DataError: no trial is asked for, or a hyper-parameter has no value.
    """
    for name, values in space.items():
        empty = not 0 < values.low <= values.high < math.inf if isinstance(values, Range) else not values
        if empty:
            raise DataError(f"search space: {name} has no value: {values}")
    if number < 1:
        raise DataError(f"search space: {number} trials; want at least one")
    generator = np.random.default_rng(seed)
    return [{name: _drawn(values, generator) for name, values in space.items()} for _ in range(number)]


def _drawn(values: Range | Sequence[float], generator: np.random.Generator) -> float:
    if isinstance(values, Range):
        return float(np.exp(generator.uniform(np.log(values.low), np.log(values.high))))
    return values[int(generator.integers(len(values)))]


@dataclass(frozen=True)
class Vtab:
    """A measured task.

    Attributes:
        trial: the hyper-parameters that were best on validation.
        tried: accuracy on validation of each trial, in order.
        runs: test accuracy of each run.
        answers: (num_test,) of the median run.
        score: of the median run. Its interval covers the choice of test pictures, not that of the 1,000.
    """

    trial: Trial
    tried: list[float]
    runs: list[float]
    answers: NDArray[np.int64]
    score: Score


def slices(train: Labelled) -> tuple[Labelled, Labelled]:
    """The first 800 pictures, and the 200 after them. Raises DataError if there are fewer than 1,000."""
    if len(train) < NUM_TRAIN + NUM_VALIDATION:
        raise DataError(f"{train.name}: {len(train)} images; VTAB takes the first {NUM_TRAIN + NUM_VALIDATION:,}")
    first = train.subset(slice(0, NUM_TRAIN), f"{train.name}[:{NUM_TRAIN}]")
    last = NUM_TRAIN + NUM_VALIDATION
    return first, train.subset(slice(NUM_TRAIN, last), f"{train.name}[{NUM_TRAIN}:{last}]")


def vtab(
    splits: tuple[Labelled, Labelled, Labelled],
    num_classes: int,
    fit: Fit,
    trials: Sequence[Trial],
    *,
    num_resamples: int,
    seed: int,
    runs: Sequence[int] = RUNS,
) -> Vtab:
    """Searches, fits again, and takes the median.

    Args:
        splits: training (800), validation (200) and test pictures; see `slices`.
        num_classes: for the level of chance.
        fit: how a trial is fitted. A trial whose fit raises DataError (it diverged) is out of the choice.
        trials: the sets of hyper-parameters, such as `draw_trials` gives.
        num_resamples: of the bootstrap.
        seed: of the bootstrap, and of the fits of the search.
        runs: the seed of each run on all pictures.

    Raises:
        DataError: no trial or no run, widths that differ, every trial fails, or a run on all pictures fails.
    """
    train, validation, test = splits
    require_one_width(*splits)
    if not trials or not runs:
        raise DataError(f"VTAB: {len(trials)} trials and {len(runs)} runs; want at least one of each")
    tried = [_judged(trial, train, validation, fit, seed) for trial in trials]
    best = max(range(len(tried)), key=tried.__getitem__)
    if tried[best] < 0:
        raise DataError(f"{train.name}: none of {len(trials)} trials could be fitted; their reasons are above")
    both = train.joined(validation, f"{train.name} and {validation.name}")
    answers = [fit(trials[best], both, test, run) for run in runs]
    scores = [accuracy([one], test, num_classes, num_resamples=num_resamples, seed=seed) for one in answers]
    values = [score.value for score in scores]
    middle = sorted(range(len(runs)), key=values.__getitem__)[(len(runs) - 1) // 2]
    return Vtab(trials[best], tried, values, answers[middle], scores[middle])


def _judged(trial: Trial, train: Labelled, validation: Labelled, fit: Fit, seed: int) -> float:
    """Accuracy on validation; -1 if the trial fails."""
    try:
        answers = fit(trial, train, validation, seed)
    except DataError as error:
        say(f"VTAB: trial {dict(trial)} is out: {error}")
        return -1.0
    return float(np.mean(answers == validation.labels))
