"""The bands that the gate suggests after a failure."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from align.config.validate import ValidateConfig
from align.validate.bands import suggested_bands
from align.validate.page import as_yaml
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
