"""What later stages require of a gate."""

from pathlib import Path

import pytest

from align.config.params_file import write_params
from align.errors import DataError, FormatError, GateError
from align.formats.verdict import TABLES, gate_report, require_passed
from tests.support.params import PARAMS_FILE, load_params
from tests.support.small_data import write_verdict

DATA, OTHER_DATA = "a" * 64, "b" * 64
WHERE = Path("data/x")


@pytest.mark.parametrize(("folder", "command"), [("quality", "validate"), ("quality_shards", "validate_shards")])
def test_no_verdict_and_one_about_other_data_are_refused(tmp_path: Path, folder: str, command: str) -> None:
    with pytest.raises(DataError, match=f"run `align {command}` first"):
        require_passed(tmp_path / folder, DATA, WHERE)
    write_verdict(tmp_path / folder, passed=True, data=DATA)
    require_passed(tmp_path / folder, DATA, WHERE)
    with pytest.raises(DataError, match=f"about other data than data/x; run `align {command}` with the same paths"):
        require_passed(tmp_path / folder, OTHER_DATA, WHERE)


def test_a_failed_verdict_gives_its_reason(tmp_path: Path) -> None:
    write_verdict(tmp_path / "quality", passed=False, data=DATA)
    with pytest.raises(GateError, match=r"the quality gate failed \(expect_this: observed 1, expected 2\); see report"):
        require_passed(tmp_path / "quality", DATA, WHERE)


def test_a_failed_verdict_on_other_data_is_about_other_data(tmp_path: Path) -> None:
    write_verdict(tmp_path / "quality", passed=False, data=DATA)
    with pytest.raises(DataError, match="about other data than data/x"):
        require_passed(tmp_path / "quality", OTHER_DATA, WHERE)


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 1, "passed": 1, "failure": null, "data": "a"}'])
def test_a_broken_verdict_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "verdict.json").write_text(text)
    with pytest.raises(FormatError, match=r"verdict\.json: .*; run `align validate` again"):
        require_passed(tmp_path, DATA, WHERE)


def test_a_trial_with_reports_of_its_own_asks_the_gate_that_judged_its_data(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(PARAMS_FILE.read_bytes())
    write_params(file, {"paths.reports": str(tmp_path / "reports")})
    trial = load_params(file, [f"paths.reports={tmp_path}/trial"])
    here, stated = tmp_path / "trial" / TABLES, tmp_path / "reports" / TABLES
    assert gate_report(load_params(file), TABLES, lambda: pytest.fail("no trial: nothing is read")) == stated
    assert gate_report(trial, TABLES, lambda: DATA) == here  # neither has judged
    write_verdict(stated, passed=True, data=DATA)
    assert gate_report(trial, TABLES, lambda: DATA) == stated
    assert gate_report(trial, TABLES, lambda: OTHER_DATA) == here
    write_verdict(here, passed=True, data=OTHER_DATA)
    assert gate_report(trial, TABLES, lambda: DATA) == stated
    write_verdict(here, passed=False, data=DATA)  # a stricter trial
    assert gate_report(trial, TABLES, lambda: DATA) == here
