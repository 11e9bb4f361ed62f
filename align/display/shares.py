"""Shares, from 0 to 1, as people read them: recall, accuracy, what is kept. Reports in JSON keep them as they are."""

from __future__ import annotations

from collections.abc import Mapping


def percent(share: float) -> str:
    """A share in per cent, such as 61.9%."""
    return f"{share:.1%}"


def precise_percent(share: float) -> str:
    """A share beside a bar that may be finer than a tenth of a per cent: four digits, such as 0.4425%."""
    return f"{100 * share:.4g}%"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign, such as −1.5; zero has none."""
    text = f"{100 * difference:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def above_chance(metrics: Mapping[str, float | int]) -> str:
    """How many measures say more than a random order would; empty where none has an interval and a chance."""
    measured = [name for name in metrics if {f"{name}/low", f"{name}/chance"} <= metrics.keys()]
    above = sum(metrics[f"{name}/low"] > metrics[f"{name}/chance"] for name in measured)
    said = f"{above} of {len(measured)} measures are above chance, by the lower end of their 95 % interval"
    return said if measured else ""
