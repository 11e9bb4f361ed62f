import json
from pathlib import Path

import pytest

from align.console import track
from align.files import replace_directory, sha256_file, to_json, write_bytes
from align.report import Report, record_runtime, write_report


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


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"loss": float("nan")})


def test_a_directory_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("old")
    with replace_directory(target) as part:
        (part / "fresh").write_text("new")
        assert (target / "stale").exists()
    assert [file.name for file in target.iterdir()] == ["fresh"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept").write_text("old")

    def fail() -> None:
        with replace_directory(target) as part:
            (part / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [file.name for file in target.iterdir()] == ["kept"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_text("x")
    with replace_directory(tmp_path / "out") as part:
        assert list(part.iterdir()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_write_bytes_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_track_yields_everything_in_order() -> None:
    assert list(track(range(5), what="counting", total=5)) == [0, 1, 2, 3, 4]


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
