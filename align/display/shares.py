"""Shares, from 0 to 1, as people read them: recall, accuracy, what is kept. Reports in JSON keep them as they are."""

from __future__ import annotations


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
