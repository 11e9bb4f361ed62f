"""tests/golden/mistakes.md: every mistake of the table is made, and prints the line that the table says."""

import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from align.cli import main
from align.verbs import VERBS
from tests.support import ROOT, colour_index, small_filter, tiny_model
from tests.support.params import PARAMS_FILE
from tests.support.small_data import jpeg


class Mistake(NamedTuple):
    """A row: the heading above it, what was typed, and the line that it prints."""

    where: str
    typed: str
    line: str


def table(page):
    """The rows of the page, under the heading of their folder."""
    rows, where = [], ""
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("## "):
            where = line.removeprefix("## ")
        elif match := re.fullmatch(r"\| `(align.*?)` \| (`+) ?(.*?) ?\2 \|", line):
            rows.append(Mistake(where, match[1], match[3]))
    return rows


def new_folder(root):
    """A folder with params.yaml and some files of a user; nothing was run."""
    (root / "infra/profiles").mkdir(parents=True)
    for name in ("crawl.yaml", "url_table.yaml"):
        shutil.copy(ROOT / "infra/profiles" / name, root / "infra/profiles")
    (root / "list.paths").write_text("gone.warc.gz\n")
    (root / "mine.yaml").write_text("filter: {min_wrods: 3}\n")
    (root / "tabs.yaml").write_text("filter:\n\tmin_words: 3\n")
    (root / "photographs").mkdir()
    (root / "photographs/a.jpg").write_bytes(jpeg(1))
    shutil.copy(PARAMS_FILE, root / "params.yaml")


def full_folder(root):
    """A git repository with data/raw, data/shards, a model and its index, and some files of a user."""
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    shutil.copy(PARAMS_FILE, root / "params.yaml")
    (root / "data/sample/evaluation").mkdir(parents=True)
    (root / "models").mkdir()
    tiny_model.write(root).rename(root / "models/finetuned")
    colour_index.write_data(root / "data", root / "reports")
    (root / "texts.txt").write_text("a red heart\n")
    (root / "notes.docx").write_bytes(b"PK\3\4")
    (root / "picture.jpg").write_bytes(jpeg(1))
    (root / "lines.parquet").write_bytes(b"of somebody")
    (root / "holidays").mkdir()
    (root / "holidays/diary.txt").write_text("no picture")
    before = Path.cwd()
    os.chdir(root)
    try:
        assert main(["index", "--set", "index.queries=null"]) == 0
    finally:
        os.chdir(before)
    for folder in ("data/raw", "reports/filter"):  # people ask about other data than what was indexed
        shutil.rmtree(root / folder)
    small_filter.shards(root / "data/raw", 2)


#: Heading of the page -> what makes its folder.
FOLDERS = {"Before anything was run": new_folder, "After the pipeline has run": full_folder}


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


def without_quotes(line):
    """Python 3.12 and later name the choices of an option without quotes."""
    return re.sub(r"\(choose from .*?\)", lambda choices: choices[0].replace("'", ""), line)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed)
def test_the_line_is_the_one_that_is_printed(mistake, folders, monkeypatch, capsys):
    root = folders[mistake.where]
    monkeypatch.chdir(root)
    for name in ("GIT_AUTHOR_NAME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COUNT": "1", "KEY_0": "user.name", "VALUE_0": "Ann"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)  # whoever runs the tests
    capsys.readouterr()
    try:
        code = main(shlex.split(mistake.typed)[1:])
    except SystemExit as stop:  # of a wrong usage
        code = int(str(stop.code))
    said = capsys.readouterr().err.replace(str(root), "FOLDER").splitlines()
    assert code in (1, 2)
    assert without_quotes(said[-1]) == without_quotes(f"align: error: {mistake.line}")
    assert [line for line in said if line.startswith("align: error: ")] == said[-1:]
    assert not (folders["Before anything was run"] / "mlflow.db").exists()  # a refused command leaves no store
