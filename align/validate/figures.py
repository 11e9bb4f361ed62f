"""The figure of `align.validate.drift`: the kept pairs now, and the reference as an outline."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from align.display.figure import GOOD, INK, legible
from align.formats.drift_reference import Distribution

#: Names of the distributions, for people.
TITLES = {
    "text_length": "characters per text",
    "image_size": "shorter side of the image, px",
    "language": "language",
}
_MAX_BARS = 14


def drift_figure(now: Mapping[str, Distribution], before: Mapping[str, Distribution]) -> Figure:
    """One panel per distribution that has pairs, with shares of the kept pairs in per cent.

    Args:
        now: name -> bucket -> share, 0 to 1.
        before: the same for the reference; empty if there is none.
    """
    now = {name: shares for name, shares in now.items() if any(shares.values()) or before.get(name)} or now
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    for axes, (name, shares) in zip(figure.subplots(1, len(now), squeeze=False)[0], now.items(), strict=True):
        labels = list(shares)
        labels += [label for label in before.get(name, {}) if label not in shares]
        labels = labels[:_MAX_BARS] if name == "language" else labels
        positions = range(len(labels))
        axes.bar(positions, [100 * shares.get(label, 0) for label in labels], color=GOOD, width=0.8, label="now")
        if name in before:
            heights = [100 * before[name].get(label, 0) for label in labels]
            axes.bar(positions, heights, width=0.8, fill=False, edgecolor=INK, linewidth=1.1, label="reference")
            axes.legend(loc="upper right", fontsize=7.5, frameon=False)
        ticks = [legible(label, width=20) for label in labels]
        axes.set_xticks(positions, ticks, fontsize=7, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_xlabel(TITLES.get(name, name), fontsize=8.5)
        axes.tick_params(axis="y", labelsize=7.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("% of kept pairs", fontsize=8.5)
    return figure
