"""Git ignores what the documentation and the messages tell people to make, and nothing that git has to keep."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from align.services.git import git
from align.verbs import JOURNEYS, VERBS
from tests.support import ROOT
from tests.support.warm import commands

#: What an `align` command writes as typed, and the folders for data and trials.
WRITTEN = re.compile(r"(?:\balign \w.*--(?:out|html) |\b(?=trial/|mydata/))([a-z][\w./-]*\w)")

PAGES = sorted((ROOT / "docs").glob("*.md"))


def texts():
    files = [ROOT / "README.md", ROOT / "flows/pages/summary.py", *PAGES, *sorted((ROOT / "align").rglob("*.py"))]
    help_texts = [JOURNEYS, *(example for verb in VERBS.values() for example in verb.examples)]
    return "\n".join([*(file.read_text("utf-8") for file in files), *help_texts])


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with our settings, as the checkout and a project of `align init` have them."""
    root = tmp_path_factory.mktemp("ignored")
    git(root, "init", "--quiet")
    shutil.copy(ROOT / ".gitignore", root)
    shutil.copy(ROOT / ".dvcignore", root)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    return root


def ignored(root, path):
    return subprocess.run(["git", "check-ignore", "--quiet", path], cwd=root, check=False).returncode == 0


def test_what_people_are_told_to_make_is_ignored(repository):
    found = set(WRITTEN.findall(texts()))
    assert {"hits.html", "trial/reports"} <= found and len(found) > 10
    kept = {path for path in found if path.startswith("data/") and path.endswith(".paths")}  # lists are for git
    assert not any(ignored(repository, path) for path in kept)
    made = (path if Path(path).suffix else f"{path}/" for path in found - kept)
    assert sorted(path for path in made if not ignored(repository, path)) == []
    of_dvc = ("dvc_plots/index.html", ".dvc/config.local", ".dvc/tmp/lock", ".dvc/cache/files", "reports/ingest/a.csv")
    assert [path for path in of_dvc if not ignored(repository, path)] == []


def test_what_git_has_to_keep_is_not_ignored(repository):
    for path in ("models/base.dvc", "imported.dvc", "data/evaluation/own.tar", "data/policy/accepted.json"):
        assert not ignored(repository, path), path


@pytest.mark.parametrize("folder", ["models/base", "imported"])
def test_an_imported_model_can_be_given_to_dvc(repository, folder):
    (repository / folder).mkdir(parents=True)
    (repository / folder / "model.safetensors").write_text("weights")
    done = subprocess.run(
        [str(commands() / "dvc"), "add", folder], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not ignored(repository, f"{folder}.dvc") and ignored(repository, f"{folder}/model.safetensors")
