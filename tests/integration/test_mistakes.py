"""tests/golden/mistakes.md: every mistake of the table is made, and prints the line that the table says."""

import shlex
from collections import Counter

import pytest

from align.cli import main
from align.verbs import VERBS
from tests.support import ROOT
from tests.support.mistakes import FOLDERS, table

MISTAKES = table(ROOT / "tests/golden/mistakes.md")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Heading -> its folder."""
    made = {where: tmp_path_factory.mktemp("mistakes") for where in FOLDERS}
    for where, make in FOLDERS.items():
        make(made[where])
    return made


def test_there_are_at_least_forty_and_of_most_verbs():
    assert len(MISTAKES) >= 40
    assert max(Counter((mistake.where, mistake.typed) for mistake in MISTAKES).values()) == 1
    verbs = {(shlex.split(mistake.typed)[1:] or [""])[0].replace("-", "_") for mistake in MISTAKES}
    assert len(verbs & set(VERBS)) >= 18


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed)
def test_the_line_is_the_one_that_is_printed(mistake, folders, monkeypatch, capsys):
    root = folders[mistake.where]
    monkeypatch.chdir(root)
    for name in ("GIT_AUTHOR_NAME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    capsys.readouterr()
    try:
        code = main(shlex.split(mistake.typed)[1:])
    except SystemExit as stop:  # of a wrong usage
        code = int(str(stop.code))
    said = capsys.readouterr().err.replace(str(root), "FOLDER").splitlines()
    assert code in (1, 2)
    assert said[-1] == f"align: error: {mistake.line}"
    assert [line for line in said if line.startswith("align: error: ")] == said[-1:]
    assert not (folders["Before anything was run"] / "mlflow.db").exists()  # a refused command leaves no store
