"""Which bands of section `validate` would let a dataset pass: what was measured, with room on both sides.

The bands in params.yaml fit the demo. With other data, look at the figures first, and then set bands that the next
dataset of this kind has to meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from align.config.validate import ValidateConfig

#: Room on each side of a measured share: ten points.
_ROOM = 0.1
#: Allows for rounding: 0.3 + 0.1 is a little more than 0.4.
_EPSILON = 1e-9


def suggested_bands(config: ValidateConfig, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The values to set where a band failed. Bands that hold are left out; an existing side is only ever widened.

    Bounds on leakage, faults and drift are not bands: there the data has to change, or a person accepts it.

    Args:
        config: the bands as they are.
        measured: as `align.validate.statistics.measure` returns it; a statistic may be None.

    Returns:
        Key of section `validate` -> value; empty where no band failed.
    """
    bands: dict[str, Any] = {}
    num_pairs, success = measured.get("raw_pairs"), measured.get("raw_success_share")
    if num_pairs and num_pairs < config.min_pairs:
        bands["min_pairs"] = int(num_pairs)
    if success is not None and success < config.min_success_share:
        bands["min_success_share"] = _low(success)
    if (keep_rate := _widened(config.keep_rate, measured.get("keep_rate"))) is not None:
        bands["keep_rate"] = keep_rate
    dropped = {
        reason: wider
        for reason, band in config.dropped_share.items()
        if (wider := _widened(band, measured.get(f"dropped_{reason}"))) is not None
    }
    return bands | ({"dropped_share": dropped} if dropped else {})


def tighter_bands(config: ValidateConfig, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The bands to set for a person who knows that this data is good: what was measured, with room on both sides.

    Args:
        config, measured: as above.

    Returns:
        Key of section `validate` -> value, for bands that hold and have more room than that. A band from 0 to 1 belongs
        to a rule that is off, and is left out.
    """
    bands: dict[str, Any] = {}
    success = measured.get("raw_success_share")
    if success is not None and config.min_success_share + _EPSILON < _low(success):
        bands["min_success_share"] = _low(success)
    if (keep_rate := _narrowed(config.keep_rate, measured.get("keep_rate"))) is not None:
        bands["keep_rate"] = keep_rate
    dropped = {
        reason: narrower
        for reason, band in config.dropped_share.items()
        if (narrower := _narrowed(band, measured.get(f"dropped_{reason}"))) is not None
    }
    return bands | ({"dropped_share": dropped} if dropped else {})


def _narrowed(band: tuple[float, float], value: float | None) -> list[float] | None:
    """The band with less room around the value; None if it already has no more room, fails, or bounds nothing."""
    if value is None or tuple(band) == (0.0, 1.0) or not band[0] <= value <= band[1]:
        return None
    narrow = [max(band[0], _low(value)), min(band[1], _high(value))]
    return narrow if narrow != list(band) else None


def _widened(band: tuple[float, float], value: float | None) -> list[float] | None:
    """The band, widened to the value; None if the value is already in it, or unknown."""
    if value is None or band[0] <= value <= band[1]:
        return None
    return [min(band[0], _low(value)), max(band[1], _high(value))]


def _low(share: float) -> float:
    return max(0.0, math.floor((share - _ROOM) * 100 + _EPSILON) / 100)


def _high(share: float) -> float:
    return min(1.0, math.ceil((share + _ROOM) * 100 - _EPSILON) / 100)
