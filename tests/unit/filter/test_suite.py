"""The sets that a suite names are kept out of training (rule I5) and looked for by the gate: one list for all."""

from pathlib import Path

import pytest

from align.filter.filter import FilterFolders, filter_pairs
from align.formats.evaluation_sets.named import named_sets
from align.services.files.files import StoreFiles
from align.validate.validate import checked_counts
from tests.support import local_store
from tests.support.small_filter import noise, stock_folder
from tests.support.suites import suite
from tests.unit.filter.test_filter import CONFIG, ENGINE, decisions


def test_pictures_of_a_suite_are_kept_out_and_what_cannot_be_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(noise(99))
    (tmp_path / "captions.txt").write_text("1.jpg,a test picture\ngone.jpg,of nothing\n")
    entry = {"name": "mine", "path": str(tmp_path / "captions.txt"), "format": "retrieval_txt", "tasks": ["retrieval"]}
    file = suite(tmp_path, entry)
    pairs = [("a good long text", noise(0)), ("copy of a test image", noise(99, 480, 460))]
    raw = stock_folder(tmp_path / "raw", list(pairs))
    store = local_store.config(tmp_path, None)
    folders = FilterFolders(raw, file, tmp_path / "p", tmp_path / "filtered", tmp_path / "reports")
    report = filter_pairs(CONFIG, ENGINE, folders, store=store)
    assert report is not None
    decided = decisions(tmp_path)
    assert [row["reason"] for row in decided.values()] == [None, "image_near_duplicate_of_test"]
    assert "1 pictures of evaluation sets cannot be read, so rule I5 does not" in capsys.readouterr().err

    sets = named_sets(file, StoreFiles(store))
    assert checked_counts(sets, report.evaluation_sets) == {"checked_sets": 1, "unchecked_sets": 0}
    (tmp_path / "images/1.jpg").write_bytes(noise(98))
    changed = named_sets(file, StoreFiles(store))
    assert checked_counts(changed, report.evaluation_sets)["unchecked_sets"] == 1
