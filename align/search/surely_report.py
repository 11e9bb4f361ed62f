"""How well the promise of an index holds, on concepts that neither the fit nor the lines have seen.

Half of the concepts make a promise, the other half is asked; 1,000 times, each with another half. nAUC is that of mteb
2.26.24 (Gisserot-Boukhlef and others, 2024): the right share among the answers that are kept, over shares of answers
that are left out, where 0 is a choice at random and 1 the best choice; the bound of its gain over the score alone is
drawn by concept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from align.display.figure import GOOD, INK, SOFT, tidy
from align.search.surely import LEVELS, Asked, fitted, margins, promised
from align.statistics.intervals import ALPHA, draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPLITS, _RESAMPLES, _LEFT_OUT = 1000, 1000, np.linspace(0, 1, 11)[:-1]
Floats = NDArray[np.float64]


def _share(asked: Asked, which: NDArray[np.bool_]) -> float:
    return float(asked.weights[which].sum() / asked.num_concepts)


def surely_metrics(asked: Asked, num_splits: int = _SPLITS) -> dict[str, float | int]:
    """The metrics of a promise, means over the splits: the loss of each level, the share of questions with a picture
    above the line, and of the right first pictures the share that is above it; nAUC.
    """
    found: dict[str, list[float]] = {}
    for seed in range(num_splits):
        half = np.random.default_rng(seed).permutation(asked.num_concepts) % 2 == 0
        seen, unseen = asked.of(half), asked.of(~half)
        promise = promised(seen)
        for level, least in promise.lines.items():
            above = margins(unseen, promise.slope) >= least
            measured = {
                "loss": _share(unseen, above & ~unseen.right),
                "share_shown": _share(unseen, above),
                "share_of_right_shown": _share(unseen, above & unseen.right) / max(_share(unseen, unseen.right), 1e-9),
            }
            for name, value in measured.items():
                found.setdefault(f"index/surely/{level}/{name}", []).append(value)
    metrics: dict[str, float | int] = {name: round(float(np.mean(values)), 6) for name, values in found.items()}
    gain, low, high = nauc_gain(asked)
    metrics["index/surely/num_concepts"] = asked.num_concepts
    metrics["index/surely/nauc"] = round(nauc(_crossed(asked), asked.right), 6)
    metrics["index/surely/nauc_gain"], metrics["index/surely/nauc_gain/low"] = round(gain, 6), round(low, 6)
    metrics["index/surely/nauc_gain/high"] = round(high, 6)
    return metrics


def nauc(sure: Floats, right: NDArray[np.bool_]) -> float:
    """nAUC of an order of answers; 0 where all or none are right, for which mteb has no number."""
    best = _area(right.astype(float), right)
    flat = right.mean() * (_LEFT_OUT[-1] - _LEFT_OUT[0])
    return float((_area(sure, right) - flat) / (best - flat)) if best > flat else 0.0


def _area(sure: Floats, right: NDArray[np.bool_]) -> float:
    _, places, counts = np.unique(sure, return_inverse=True, return_counts=True)
    ordered = np.repeat(np.bincount(places, right) / counts, counts)  # answers that are as sure count as their mean
    kept = [ordered[min(round(share * len(ordered)), len(ordered) - 1) :].mean() for share in _LEFT_OUT]
    return float(np.trapezoid(kept, _LEFT_OUT))


def nauc_gain(asked: Asked) -> tuple[float, float, float]:
    """nAUC with a line that rises with splits, minus that of the score alone, and its 95 % interval by concepts.

    Each half of the concepts is judged by the slope of the other.
    """
    crossed = _crossed(asked)

    def gain(rows: NDArray[np.int64]) -> float:
        return nauc(crossed[rows], asked.right[rows]) - nauc(asked.scores[rows], asked.right[rows])

    rows = np.arange(len(asked.concepts))
    drawn = [
        gain(np.repeat(rows, counts[asked.concepts].astype(int)))
        for block in draws(asked.num_concepts, _RESAMPLES, 0)
        for counts in block
    ]
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    return gain(rows), float(low), float(high)


def _crossed(asked: Asked) -> Floats:
    half = np.arange(asked.num_concepts) % 2 == 0
    slopes = np.where(half, fitted(asked.of(~half)), fitted(asked.of(half)))
    crossed: Floats = asked.scores - slopes[asked.concepts] * asked.splits
    return crossed


def surely_figure(asked: Asked) -> Figure:
    """Loss against the share of questions with a picture above the line, for a line at any height; the score alone
    is grey. The promised losses are dashed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    each = asked.weights / asked.num_concepts
    for name, sure, colour in (("the score alone", asked.scores, SOFT), ("the line", _crossed(asked), INK)):
        order = np.argsort(-sure)
        wrong = (each * ~asked.right)[order].cumsum()
        axes.plot(100 * each[order].cumsum(), 100 * wrong, color=colour, label=name, lw=1.6)
    for level in LEVELS:
        axes.axhline(100 * (1 - level), color=GOOD, lw=1, ls="--", zorder=0)
    axes.set_xlabel("questions with a picture above the line, %", fontsize=9)
    axes.set_ylabel("a wrong first picture above it, %", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)
    return figure
