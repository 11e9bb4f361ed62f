"""The bands that the gate suggests after a failure."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from align.config.validate import ValidateConfig
from align.validate.page import as_yaml
from align.validate.statistics import suggested_bands, tighter_bands
from tests.support.params import load_params

CONFIG = load_params().section(ValidateConfig)
GOOD: dict[str, Any] = {
    "raw_pairs": 5000, "raw_success_share": 0.95, "keep_rate": 0.5, "dropped_text_too_short": 0.2,
}  # fmt: skip


def test_a_gate_that_passed_suggests_nothing() -> None:
    assert suggested_bands(CONFIG, GOOD) == {}
    assert suggested_bands(CONFIG, dict.fromkeys(GOOD)) == {}  # a column is missing: nothing was measured


@pytest.mark.parametrize(
    ("measured", "bands"),
    [
        ({"raw_pairs": 20}, {"min_pairs": 20}),
        ({"raw_pairs": 0}, {}),  # no band helps
        ({"raw_success_share": 0.634}, {"min_success_share": 0.53}),
        ({"raw_success_share": 0.05}, {"min_success_share": 0.0}),
        ({"keep_rate": 0.074}, {"keep_rate": [0.0, 0.8]}),
        ({"keep_rate": 0.931}, {"keep_rate": [0.3, 1.0]}),
        ({"dropped_text_too_short": 0.3}, {"dropped_share": {"text_too_short": [0.0, 0.4]}}),
        ({"kept_evaluation_hashes": 0.5}, {}),  # leakage is no band
    ],
)
def test_what_failed_gets_ten_points_of_room(measured: dict[str, Any], bands: dict[str, Any]) -> None:
    assert suggested_bands(CONFIG, GOOD | measured) == bands


def test_data_passes_with_the_suggested_lines() -> None:
    measured = {"raw_pairs": 7, "raw_success_share": 0.41, "keep_rate": 0.02, "dropped_text_too_short": 0.77}
    lines = as_yaml(suggested_bands(CONFIG, measured))
    bands = YAML(typ="safe", pure=True).load(lines)["validate"]
    changed = CONFIG.model_dump() | bands | {"dropped_share": CONFIG.dropped_share | bands["dropped_share"]}
    assert suggested_bands(ValidateConfig.model_validate(changed), measured) == {}


WIDE = CONFIG.model_copy(
    update={
        "min_success_share": 0.4,
        "keep_rate": (0.2, 1.0),
        "dropped_share": {"text_too_long": (0.0, 0.5), "text_too_short": (0.0, 0.05), "pair_repeat": (0.0, 1.0)},
    }
)


def test_bands_with_more_than_ten_points_of_room_can_be_tighter() -> None:
    measured = {"raw_success_share": 1.0, "keep_rate": 0.66, "dropped_text_too_long": 0.298, "dropped_pair_repeat": 0.0}
    wanted = {
        "min_success_share": 0.9, "keep_rate": [0.56, 0.76], "dropped_share": {"text_too_long": [0.19, 0.4]},
    }  # fmt: skip
    assert tighter_bands(WIDE, measured) == wanted
    narrow = WIDE.model_copy(update={"min_success_share": 0.9, "keep_rate": (0.56, 0.76), "dropped_share": {}})
    assert tighter_bands(narrow, measured) == {}


def test_a_band_that_failed_or_was_not_measured_is_not_tightened() -> None:
    assert tighter_bands(WIDE, {"raw_success_share": 0.1, "keep_rate": 0.1, "dropped_text_too_short": 0.2}) == {}
    assert tighter_bands(WIDE, {}) == {}
