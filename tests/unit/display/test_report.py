import json
from pathlib import Path

import pytest

from align.display.report import Report, record_runtime, write_report


class ExampleReport(Report):
    rows: list[int]


def test_a_report_is_two_files_of_equal_bytes_each_time(tmp_path: Path) -> None:
    report = ExampleReport(metrics={"b/x": 1, "a": 0.5}, rows=[1, 2])
    write_report(report, tmp_path / "one")
    write_report(report, tmp_path / "two")
    assert json.loads((tmp_path / "one" / "metrics.json").read_text()) == {"a": 0.5, "b/x": 1}
    assert json.loads((tmp_path / "one" / "report.json").read_text()) == {"schema_version": 1, "rows": [1, 2]}
    for name in ("metrics.json", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_runtime_is_recorded_when_the_stage_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with record_runtime("filter", tmp_path) as record:
            record["pairs_per_s"] = 3
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    record = json.loads((tmp_path / "filter.json").read_text())
    assert record["outcome"] == "failed: KeyError"
    assert record["pairs_per_s"] == 3
