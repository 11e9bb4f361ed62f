"""Git ignores what the documentation and the messages tell people to make, and nothing that git has to keep."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.cli.parser import COMMANDS  # type: ignore[import-untyped]  # DVC ships no types

from align.services.git import changes, git
from align.verbs import JOURNEYS, VERBS
from tests.support import ROOT
from tests.support.dvc_projects import environment, make_repository, shell
from tests.support.warm import commands

#: What an `align` command writes as typed, and the folders for data and trials.
WRITTEN = re.compile(r"(?:\balign \w.*--(?:out|html) |\b(?=trial/|mydata/))([a-z][\w./-]*\w)")

PAGES = sorted((ROOT / "docs").glob("*.md"))


def texts():
    files = [ROOT / "README.md", *PAGES, *sorted((ROOT / "align").rglob("*.py"))]
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
    assert ignored(repository, "dvc_plots/index.html")


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


#: A stage with metrics, a parameter and a curve, as dvc.yaml has them.
DVC_YAML = """\
stages:
  train:
    cmd: mkdir -p reports/pretrain && cp ${source} reports/pretrain/metrics.json && cp curve reports/pretrain/curve.csv
    params: [source]
    outs: [reports/pretrain]
metrics: [reports/pretrain/metrics.json]
plots:
  - train/loss: {x: step, y: {reports/pretrain/curve.csv: loss}}
"""
#: Commands of DVC that people are told to type, or that show what the reports have, in a checkout after a run.
TYPED = (
    "dvc repro", "dvc commit train", "dvc push", "dvc pull", "dvc checkout", "dvc status", "dvc dag",
    "dvc plots show", "dvc plots diff", "dvc metrics diff", "dvc params diff",
    "dvc remote add --local s3 s3://bucket/dvc", "dvc remote default --local s3",
    "dvc remote modify --local s3 region us-east-1", "dvc gc --all-branches --all-tags --force",
)  # fmt: skip
#: What they make or take away is for git.
FOR_GIT = {"dvc add", "dvc remove"}
#: The first words of DVC's commands.
DVC_COMMANDS = {module.__name__.rpartition(".")[2] for module in COMMANDS}
#: A command of DVC in a text, such as `dvc plots show`.
COMMAND = re.compile(r"\bdvc (?:(?:plots|metrics|params|remote) )?[a-z]+")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A repository with our settings and one stage, after its first run."""
    root = tmp_path_factory.mktemp("typed") / "project"
    files = {"dvc.yaml": DVC_YAML, "params.yaml": "source: one\n", "one": '{"a": 1}', "curve": "step,loss\n0,1\n1,0\n"}
    make_repository(root, files, "")
    shell(root, "dvc repro --quiet", {})
    return root


def test_every_command_that_people_are_told_to_type_is_typed_here():
    told = [ROOT / "README.md", *PAGES, ROOT / "flows/pages/summary.py", ROOT / "align/project/template/README.md"]
    words = {word for file in told for word in COMMAND.findall(file.read_text("utf-8"))}
    commands = {word for word in words if word.split()[1] in DVC_COMMANDS}
    typed = {found[0] for command in TYPED if (found := COMMAND.match(command))}
    assert "dvc plots show" in commands and commands - typed - FOR_GIT == set()


@pytest.mark.costs(4, "fifteen commands of DVC")
def test_what_people_are_told_to_type_leaves_the_checkout_clean(project):
    """The next run refuses a checkout with changes. dvc.lock, the result of a run, is none."""
    for command in TYPED:
        done = subprocess.run(
            command.split(), cwd=project, env=environment(project, {}), capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        assert changes(project) == [], command
