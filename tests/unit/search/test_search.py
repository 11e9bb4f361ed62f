import numpy as np
import pytest

from align.cli import main
from align.errors import DataError, FormatError
from align.search.queries import compose, names, read_queries, share_named
from align.search.report import index_metrics
from tests.support import tiny_model
from tests.support.params import PARAMS_FILE


@pytest.mark.parametrize(("texts", "expected", "named"), [
    (["A red Heart"], ["heart"], True),
    (["broken hearts"], ["heart"], False),  # whole words only
    (["sweetheart"], ["heart"], False),
    (["heart-shaped box"], ["heart"], True),
    (["a dog", "fire  engine, truck"], ["fire engine"], True),
    (["fire, engine"], ["fire engine"], False),
    (["Ärger (c++)"], ["ärger"], True),
    ([], ["heart"], False),
])  # fmt: skip
def test_names_whole_words_of_any_text(texts, expected, named):
    assert names(texts, expected) is named


def test_share_named():
    assert share_named([["a heart"], ["a star"], ["love", "heart"], ["rose"]], ["heart"]) == 0.5
    assert share_named([], ["heart"]) == 0.0


def test_the_text_weighs_twice_as_much_as_the_image():
    image, text = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert compose(image, plus=text, text_weight=2.0) == pytest.approx(np.array([1, 2]) / 5**0.5)
    assert compose(image, minus=text, text_weight=2.0) == pytest.approx(np.array([1, -2]) / 5**0.5)
    assert compose(image, plus=text, minus=text, text_weight=2.0) == pytest.approx(image)
    assert compose(image, text_weight=2.0) == pytest.approx(image)
    with pytest.raises(ValueError, match="cancel"):
        compose(image, minus=image, text_weight=1.0)


def test_minus_share_ratio():
    def ratio(*shares):
        composed = [
            {"image_key": 1, "share_before": before, "share_after": after, "expected_before": 0, "expected_after": 0}
            for before, after in shares
        ]
        return index_metrics(9, [], composed).get("index/minus/share_ratio")

    assert ratio((0.8, 0.2), (0.2, 0.2)) == 0.4
    assert ratio((0.0, 0.0)) == 1.0  # nothing to take away is no success
    assert ratio() is None


def test_a_query_file_is_read_or_explained(tmp_path):
    path = tmp_path / "queries.json"
    with pytest.raises(DataError, match="no such file"):
        read_queries(path)
    path.write_text('{"schema_version": 1, "queries": [{"query": "a heart", "expected": []}], "composed": []}')
    with pytest.raises(FormatError, match=r"queries\.0\.expected"):
        read_queries(path)
    path.write_text('{"schema_version": 1, "queries": [{"query": "a heart", "expected": ["heart"]}], "composed": []}')
    assert read_queries(path).queries[0].expected == ["heart"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny_model.write(tmp_path)
    (tmp_path / "texts.txt").write_text("a red heart\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "line"), [
    (["embed", "texts.txt", "--out", "e.csv"], "--out e.csv: what is written there is parquet; give a name that"),
    (["embed", "texts.txt", "--out", "texts.txt"], "--out texts.txt: what is written there is parquet"),
    (["embed", "texts.txt", "--out", "."], "--out .: is a folder; give the name of a file in it, such as out.parq"),
    (["embed", "texts.txt", "--out", "texts.txt/e.parquet"], "texts.txt/e.parquet: texts.txt cannot be made"),
    (["search", "fox", "--html", "texts.txt"], "--html texts.txt: what is written there is html; give a name that"),
    (["search", "fox", "--html", "texts.txt/e.html"], "texts.txt/e.html: texts.txt cannot be made"),
])  # fmt: skip
def test_it_is_one_line_and_nothing_changes(folder, capsys, words, line):
    before = sorted(folder.rglob("*"))
    assert main([*words, "--params", str(PARAMS_FILE), "--set", "paths.finetuned=model"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0]
    assert sorted(folder.rglob("*")) == before and (folder / "texts.txt").read_text() == "a red heart\n"
