"""`align embed --out` and `align search --html`: a name that would surprise is one line, before any work."""

from pathlib import Path

import pytest

from align.cli import main
from tests.support import tiny_model
from tests.support.params import PARAMS_FILE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_model.write(tmp_path)
    (tmp_path / "texts.txt").write_text("a red heart\n")
    (tmp_path / "pages").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["embed", "texts.txt", "--out", "e.csv"], "--out e.csv: what is written there is parquet; give a name that"),
        (["embed", "texts.txt", "--out", "texts.txt"], "--out texts.txt: what is written there is parquet"),
        (["embed", "texts.txt", "--out", "."], "--out .: is a folder; give the name of a file in it, such as out.parq"),
        (["embed", "texts.txt", "--out", "texts.txt/e.parquet"], "texts.txt/e.parquet: texts.txt cannot be made"),
        (["search", "fox", "--html", "texts.txt"], "--html texts.txt: what is written there is html; give a name that"),
        (["search", "fox", "--html", "pages"], "--html pages: is a folder; give the name of a file in it"),
        (["search", "fox", "--html", "texts.txt/e.html"], "texts.txt/e.html: texts.txt cannot be made"),
    ],
)
def test_it_is_one_line_and_nothing_changes(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert main([*words, "--params", str(PARAMS_FILE), "--set", "paths.finetuned=model"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and line in said[0]
    assert sorted(folder.rglob("*")) == before and (folder / "texts.txt").read_text() == "a red heart\n"
