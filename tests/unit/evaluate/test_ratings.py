"""Files of Crisscrossed Captions, as published and damaged."""

import pytest

from align.errors import DataError, FormatError
from align.evaluate import ratings
from align.evaluate.ratings import read_rated_pairs
from tests.support.suites import local_files

STS = """caption1,caption2,agg_score,sampling_method
COCO_val2014:sentid:411553,COCO_val2014:sentid:5142,1.56,c2c_isim
COCO_val2014:sentid:411760,COCO_val2014:sentid:601619,3.1,c2c_isim
"""
SIS = """image1,image2,agg_score,sampling_method
COCO_val2014_000000205866.jpg,COCO_val2014_000000039081.jpg,3.6,i2i_csim
COCO_val2014_000000039081.jpg,COCO_val2014_000000205866.jpg,3.4,i2i_csim
"""
SITS = """caption,image,agg_score,sampling_method
COCO_val2014:sentid:732091,COCO_val2014_000000365325.jpg,2.2,c2i_intrasim
"""


@pytest.mark.parametrize(("text", "kind", "first", "second", "rated"), [
    (STS, "sts", [411553, 411760], [5142, 601619], [1.56, 3.1]),
    (SIS, "sis", [205866, 39081], [39081, 205866], [3.6, 3.4]),
    (SITS, "sits", [732091], [365325], [2.2]),
    (SITS.replace("\n", "\r\n"), "sits", [732091], [365325], [2.2]),
])  # fmt: skip
def test_the_published_layout(tmp_path, text, kind, first, second, rated):
    (tmp_path / "any.csv").write_text(text, newline="")
    found = read_rated_pairs(str(tmp_path / "any.csv"), local_files())
    assert (found.kind, found.first.tolist(), found.second.tolist()) == (kind, first, second)
    assert found.ratings.tolist() == rated


def test_ids_become_positions_in_the_set(tmp_path):
    (tmp_path / "sits.csv").write_text(SITS)
    found = read_rated_pairs(str(tmp_path / "sits.csv"), local_files())
    placed = found.placed([1, 732091], [365325])
    assert (placed.first.tolist(), placed.second.tolist()) == ([1], [0])
    with pytest.raises(DataError, match="sits: image: the set lacks 1, the first is id 365325"):
        found.placed([732091], [1])


@pytest.mark.parametrize(("text", "message"), [
    (STS.replace("agg_score", "annotation"), "its first line is"),
    ("", "its first line is ''"),
    ("caption1,caption2\n", "its first line is"),
    (STS.splitlines()[0], "no rows"),
    (STS + "x,y,3,z\n", r"line 4: 'x,y,3,z' is not a rating"),
    (STS.replace("1.56", "nan"), "line 2: .* is not a rating"),
    (STS.replace("1.56", "7"), "line 2: .* is not a rating"),
    (STS.replace("1.56", ""), "line 2: .* is not a rating"),
    (STS[:-20], "line 3: .* is not a rating"),  # cut short
    (STS + STS.splitlines()[1] + "\n", "411553 and 5142 have two rows"),
    (STS.replace("411553", "9" * 30), "line 2: .* is not a rating"),
    (STS + '"open', "not a CSV"),
])  # fmt: skip
def test_other_layouts_are_named(tmp_path, text, message):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_rated_pairs(str(tmp_path / "bad.csv"), local_files())


def test_hostile_bytes_and_no_file(tmp_path, monkeypatch):
    file = tmp_path / "bad.csv"
    file.write_bytes(STS.encode() + b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not a CSV in UTF-8"):
        read_rated_pairs(str(file), local_files())
    monkeypatch.setattr(ratings, "_MOST_BYTES", 10)
    with pytest.raises(DataError, match="the ratings: more than 0 MiB"):
        read_rated_pairs(str(file), local_files())
    with pytest.raises(DataError, match="No such file"):
        read_rated_pairs(str(tmp_path / "none.csv"), local_files())
