"""Two hand-made versions of the data side by side."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.config.infrastructure import EngineConfig
from align.errors import DataError
from align.lineage.diff import DiffReport, VersionTables, compare, text_lines
from align.services.engine import open_engine
from tests.support import small_data
from tests.support.params import load_params
from tests.support.small_data import Pair

BEFORE = [
    Pair("a red fox", 1),
    Pair("an owl at night", 2),
    Pair("rare words here", 3, reason="text_rare_ngram"),
    Pair("too short", 4, reason="text_too_short"),
    Pair("the same twice", 5),
    Pair("the same twice", 5, reason="text_rare_ngram"),
    Pair("gone since", 6),
]
#: Keys change, since another pair comes first.
AFTER = [
    Pair("a new <b>picture</b>", 9),
    Pair("a red fox", 1),
    Pair("an owl at night", 2, reason="opted_out"),
    Pair("rare words here", 3),
    Pair("too short", 4, reason="text_is_filename"),
    Pair("the same twice", 5, reason="text_rare_ngram"),
    Pair("the same twice", 5),
]


@pytest.fixture
def folders(tmp_path):
    for name, pairs in (("one", BEFORE), ("two", AFTER)):
        small_data.write(tmp_path / name, pairs, pairs_per_shard=3)
    return tmp_path / "one", tmp_path / "two"


def compared(before, after):
    versions = (VersionTables(path.name, path / "raw", path / "filtered") for path in (before, after))
    with open_engine(load_params().section(EngineConfig)) as engine:
        return compare(engine, *versions)


def test_what_entered_and_left_and_why(folders):
    report = compared(*folders)
    assert (report.before.num_pairs, report.before.num_kept) == (7, 4)
    assert (report.after.num_pairs, report.after.num_kept) == (7, 4)
    assert {(move.before, move.after, move.num_pairs) for move in report.moves} == {
        ("absent", "kept", 1),
        ("text_rare_ngram", "kept", 1),
        ("kept", "opted_out", 1),
        ("kept", "absent", 1),
        ("text_too_short", "text_is_filename", 1),
    }  # the equal pairs changed places, and the fox its key: no move
    assert {move.before for move in report.entered} == {"absent", "text_rare_ngram"}
    assert {move.after for move in report.left} == {"absent", "opted_out"}
    (other,) = report.others
    (example,) = other.examples
    assert (example.text, example.key_before, example.key_after) == ("too short", "000010000", "000010001")
    assert report.after.states == {"kept": 4, "opted_out": 1, "text_is_filename": 1, "text_rare_ngram": 1}


def test_nothing_changed(folders):
    report = compared(folders[0], folders[0])
    assert report.moves == []
    assert set(report.distances) == {"text_length", "image_size", "language"}
    assert set(report.distances.values()) == {0.0}
    assert "entered (kept now, not before): 0" in list(text_lines(report))


def test_how_the_kept_pairs_moved(tmp_path):
    short, long = "a fox", "a fox that ran over the hill and far away, on a day in May, as foxes do"
    small_data.write(tmp_path / "one", [Pair(short, number) for number in range(4)])
    small_data.write(tmp_path / "two", [Pair(short, 0), *(Pair(long, number) for number in (1, 2, 3))])
    for name, language in (("one", "en"), ("two", "de")):
        decisions = pq.read_table(tmp_path / name / "filtered/decisions").to_pylist()
        small_data.write_decisions(tmp_path / name / "filtered", [row | {"language": language} for row in decisions])
    report = compared(tmp_path / "one", tmp_path / "two")
    assert report.distances == {"image_size": 0.0, "language": 1.0, "text_length": 0.75}


def test_the_command(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    assert main(["diff", "one", "two"]) == 0
    text = capsys.readouterr().out
    assert "left (kept before, not now): 2" in text
    assert "opted_out\n              such as 'an owl at night' (000000002, https://example.org/2.jpg)" in text
    assert main(["diff", "one", "two", "--json"]) == 0
    assert DiffReport.model_validate_json(capsys.readouterr().out) == compared(*folders)


@pytest.mark.parametrize(
    ("words", "says"), [(["one", "nowhere"], "'nowhere' names no commit"), (["one", "empty"], "no decisions;")]
)
def test_what_is_no_data_is_a_clear_error(folders, words, says, capsys, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    Path("empty").mkdir()
    assert main(["diff", *words]) == 1
    assert says in capsys.readouterr().err


def test_a_folder_without_tables_is_an_error(folders):
    for path in (folders[1] / "raw").glob("*.parquet"):
        path.unlink()
    with pytest.raises(DataError, match="two: no tables of data/raw"):
        compared(*folders)
