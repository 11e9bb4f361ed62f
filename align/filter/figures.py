"""The figures of the filter's page: the funnel, words per text, sizes of images, languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.config.filter import FilterConfig
from align.display.figure import BAD, GOOD, INK, SOFT
from align.filter.overview import Counted

_MAX_BAR_WORDS = 30
_MAX_LANGUAGES = 12
#: Inches; three panels are shown side by side.
_PANEL = (4.0, 2.8)


def funnel_figure(num_pairs: int, steps: Sequence[tuple[str, int, int]]) -> Figure:
    """Pairs left after each rule.

    Args:
        num_pairs: raw pairs.
        steps: (rule, pairs that it is the first to drop, pairs left after it), in rule order.
    """
    labels = ["raw pairs", *(name for name, _, _ in steps)]
    left, dropped = [num_pairs, *(left for _, _, left in steps)], [0, *(gone for _, gone, _ in steps)]
    figure = Figure(figsize=(9.8, 0.4 * len(labels) + 0.8))
    axes = figure.subplots()
    bars = range(len(labels))
    axes.barh(bars, left, color=GOOD, height=0.74)
    axes.barh(bars, dropped, left=left, color=BAD, alpha=0.75, height=0.74)
    for bar, remaining, gone in zip(bars, left, dropped, strict=True):
        share = f", {gone / num_pairs:.1%}" if gone > 0.0005 * num_pairs else ""
        text = f"{remaining:,}  (−{gone:,}{share})" if gone else f"{remaining:,}"
        axes.text(remaining + gone + 0.01 * num_pairs, bar, text, va="center", fontsize=8.5, color=INK)
    axes.set_yticks(bars, labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.22 * num_pairs))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("pairs left after each rule, in rule order (red: dropped by it)", fontsize=9, color=SOFT)
    _tidy(axes)
    return figure


def words_figure(num_words: Mapping[int, int], config: FilterConfig) -> Figure:
    """Words per text -> pairs; bars that rule T3 drops are red."""
    counts = [0] * (_MAX_BAR_WORDS + 1)
    for words, pairs in num_words.items():
        counts[min(words, _MAX_BAR_WORDS)] += pairs
    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.subplots()
    inside = [config.min_words <= words <= config.max_words for words in range(len(counts))]
    axes.bar(range(len(counts)), counts, color=[GOOD if kept else BAD for kept in inside], width=0.8)
    ticks = range(0, _MAX_BAR_WORDS + 1, 5)
    axes.set_xticks(ticks, [f"{tick}+" if tick == _MAX_BAR_WORDS else str(tick) for tick in ticks])
    axes.set_xlabel(f"words per text (kept: {config.min_words} to {config.max_words})", fontsize=9, color=SOFT)
    _tidy(axes, "pairs")
    return figure


def sizes_figure(short_sides: Mapping[int, int], config: FilterConfig) -> Figure:
    """Shorter side in pixels -> distinct images; buckets that rule I2 drops as a whole are red."""
    lows = sorted(short_sides)
    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.subplots()
    ends = [*lows[1:], float("inf")]
    colours = [BAD if end - 1 <= config.short_side_above_px else GOOD for end in ends]
    axes.bar(range(len(lows)), [short_sides[low] for low in lows], color=colours, width=0.8)
    labels = [f"{low:,}+" if low == lows[-1] else f"{low:,}" for low in lows]
    axes.set_xticks(range(len(lows)), labels, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlabel(f"shorter side from ... px (kept: above {config.short_side_above_px:,})", fontsize=9, color=SOFT)
    _tidy(axes, "distinct images")
    return figure


def languages_figure(languages: Sequence[Counted], num_looked_at: int) -> Figure:
    """Languages of texts -> pairs, the kept ones green, the dropped ones red."""
    shown = list(languages[:_MAX_LANGUAGES])
    if rest := languages[_MAX_LANGUAGES:]:
        others = (sum(one.num_pairs for one in rest), sum(one.num_kept for one in rest))
        shown.append(Counted(name=f"{len(rest)} others", num_pairs=others[0], num_kept=others[1]))
    figure = Figure(figsize=_PANEL, layout="constrained")
    axes = figure.subplots()
    bars = range(len(shown))
    kept = [one.num_kept for one in shown]
    axes.bar(bars, kept, color=GOOD, width=0.8)
    axes.bar(bars, [one.num_pairs - one.num_kept for one in shown], bottom=kept, color=BAD, alpha=0.75, width=0.8)
    axes.set_xticks(bars, [one.name for one in shown], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlabel(f"language, guessed, {num_looked_at:,} texts (green: kept)", fontsize=9, color=SOFT)
    _tidy(axes, "pairs")
    return figure


def _tidy(axes: Axes, counted: str | None = None) -> None:
    if counted:
        axes.set_ylabel(counted, fontsize=9, color=SOFT)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
