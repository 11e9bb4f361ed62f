"""`align init`: what is in the new folder, what is refused, and that it appears complete or not at all."""

import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from align.cli import main, read_params
from align.formats.acceptances import read_acceptances
from align.formats.drift_reference import read_reference
from align.formats.evaluation_sets.align_tar import load_sets
from align.formats.policy import read_opted_out
from align.project import init
from align.services.git import git
from tests.support import ROOT
from tests.support.params import load_params


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project of the photographs' profile, made by a person whom git does not know."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    (home / "photos/a.jpg").touch()
    (home / "photos/a.txt").write_text("a picture\n")
    done = align(home, "init", "project", "--profile", "photographs", "--set", "paths.archive=photos")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "next: cd project && dvc repro"
    return home / "project"


def align(folder, *words, **variables):
    """The command as typed in a folder, on a machine without git's settings; in this process, which knows the code."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_", "XDG_"))]:
            patch.delenv(name)
        for name, value in ({"HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "EMAIL": ""} | variables).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def test_everything_is_committed(made):
    assert git(made, "status", "--porcelain", "--ignored") == ""
    files = set(git(made, "ls-files").splitlines())
    assert files == {
        ".dvc/.gitignore", ".dvc/config", ".dvcignore", ".gitignore", "Makefile", "README.md",
        "data/evaluation/README.md", "data/policy/README.md", "data/policy/accepted.json", "data/policy/opted_out.csv",
        "data/policy/reference.json", "data/queries.json", "dvc.yaml", "infra/env.example", "params.yaml",
        "prefect.yaml",
    }  # fmt: skip
    assert git(made, "log", "--format=%an").splitlines()[0]


def test_no_file_names_where_align_is_installed(made):
    for name in git(made, "ls-files").splitlines():
        text = (made / name).read_text()
        assert str(ROOT) not in text and sys.prefix not in text, name


def test_params_hold_the_profile_and_what_was_set_with_their_comments(made):
    params = read_params(made / "params.yaml", [])
    paths = params.values["paths"]
    assert paths["archive"] == str(made.parent / "photos")
    assert (paths["evaluation"], params.values["index"]["queries"]) == ("data/evaluation", "data/queries.json")
    assert params.values["filter"]["max_texts_per_image"] == 1000
    assert params.values["validate"]["min_evaluation_sets"] == 0
    ours, theirs = ((root / "params.yaml").read_text().splitlines() for root in (ROOT, made))
    theirs, ours = ([line.partition(" #")[2] for line in lines if " #" in line] for lines in (theirs, ours))
    assert theirs == ours and len(ours) > 100  # a list may have another length


def test_the_data_is_there_and_empty(made):
    assert read_acceptances(made / "data/policy") == ()
    assert read_reference(made / "data/policy") is None
    assert not read_opted_out(made / "data/policy").entries
    assert load_sets(made / "data/evaluation") == []


def test_the_dag_is_ours(made):
    assert (made / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


@pytest.mark.parametrize("typed, written", [
    ("photos", "{home}/photos"),
    ("./photos/../photos", "{home}/photos"),
    ("{home}/photos", "{home}/photos"),
    ("~/photos", "{home}/photos"),
    ("photos/*.warc.gz", "{home}/photos/*.warc.gz"),
    ("new/mydata/pairs", "mydata/pairs"),
    ("s3://bucket/pairs", "s3://bucket/pairs"),
])  # fmt: skip
def test_a_path_is_meant_from_where_it_is_typed(tmp_path, monkeypatch, typed, written):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.warc.gz").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = typed.format(home=tmp_path)
    assert main(["init", "new", "--set", f"paths.archive={path}"]) == 0
    archive = load_params(tmp_path / "new/params.yaml").values["paths"]["archive"]
    assert archive == written.format(home=tmp_path)


@pytest.mark.parametrize("words, line", [
    (["full"], "full: it is not empty; choose a new folder"),
    (["project"], "project: it is a project already, made with other values of filter.max_texts_per_image, "),
    (["file"], "file: is a file, not a folder"),
    (["."], "the working directory, or a folder around it, is not replaced"),
    (["new", "--set", "paths.archive=nowhere"], "nowhere: no such file or folder; give the path from here"),
    (["new", "--set", "paths.archive=/nowhere/pairs"], "/nowhere/pairs: no such file or folder; give the path from"),
    (["new", "--set", f"paths.archive={ROOT}/docs", "--profile", "photographs"], "(ingest.source is folder; --profile"),
    (["new", "--set", f"paths.archive={ROOT}/docs"], "(ingest.source is warc; --profile photographs for pictures"),
    (["new", "--set", "paths.archive=around"], "lies in, or around, the input paths.archive"),
    (["new", "--set", "paths.archive=new"], "align: error: new/params.yaml: section 'paths': paths.checkpoints ("),
    (["new", "--set", "paths.archive=new/data/raw"], "/here/new/data/raw); stages replace what they write"),
    (["new", "--set", "paths.root=trial"], "paths.root = trial moves paths.raw: stage ingest of dvc.yaml writes"),
    (["new", "--set", "paths.raw=pairs"], "paths.raw = pairs: stage ingest of dvc.yaml writes data/raw"),
    ([], "the following arguments are required: DIR"),
])  # fmt: skip
def test_what_is_refused_leaves_nothing(made, tmp_path, monkeypatch, capsys, words, line):
    around = "paths.archive=around" in words
    work = tmp_path / "around" / "here" if around else tmp_path / "here"
    work.mkdir(parents=True)
    if around:
        (work / "around").symlink_to(tmp_path / "around")
    if words == ["full"]:
        (work / "full").mkdir()
        (work / "full/letter.txt").touch()
    elif words == ["file"]:
        (work / "file").touch()
    elif words == ["project"]:
        shutil.copytree(made, work / "project")
    before = sorted(work.rglob("*"))
    monkeypatch.chdir(work)
    try:
        code = main(["init", *words])
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    said = capsys.readouterr()
    assert code != 0 and line in said.err, said
    assert said.err.count("align: error:") == 1 and "Traceback" not in said.err
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("profile, header", [("photographs", "file,caption"), ("url_table", "url,caption")])
def test_a_table_with_names_of_columns_alone_is_refused(tmp_path, monkeypatch, capsys, profile, header):
    (tmp_path / "table.csv").write_text(f"{header}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "new", "--profile", profile, "--set", "paths.archive=table.csv"]) == 1
    assert "table.csv: the table is empty" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_typed_again_it_does_no_harm(made):
    (made / "params.yaml").write_text((made / "params.yaml").read_text().replace("min_words: 3", "min_words: 4"))
    before = git(made, "rev-parse", "HEAD"), git(made, "status", "--porcelain")
    words = ["init", "project", "--profile", "photographs", "--set"]
    done = align(made.parent, *words, "paths.archive=photos")
    assert done.returncode == 0 and done.stdout.startswith("project: a project, here already, which stays as it is; ")
    done = align(made.parent, *words, "paths.archive=photos", "--set", "ingest.shard_size=7")
    assert done.returncode == 1 and "made with other values of ingest.shard_size; edit its params.yaml" in done.stderr
    assert (git(made, "rev-parse", "HEAD"), git(made, "status", "--porcelain")) == before
    git(made, "checkout", "--", "params.yaml")


def test_an_interrupted_init_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "git", interrupted)
    assert main(["init", "new"]) == 130
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["init", "new"]) == 0


def test_inside_a_hook_the_other_repository_stays(tmp_path):
    """Hooks and `git rebase --exec` set variables that name a repository before any folder does."""
    git(tmp_path, "init", "--quiet", "other")
    other = tmp_path / "other"
    git(other, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "theirs")
    before = git(other, "rev-parse", "HEAD")
    hook = {"GIT_DIR": f"{other}/.git", "GIT_WORK_TREE": str(other), "GIT_INDEX_FILE": f"{other}/.git/index"}
    done = align(tmp_path, "init", "new", **hook)
    assert done.returncode == 0, done.stderr
    assert git(other, "rev-parse", "HEAD") == before and git(other, "ls-files") == ""
    assert git(tmp_path / "new", "status", "--porcelain") == ""


def test_without_git_the_line_says_so(tmp_path):
    done = align(tmp_path, "init", "new", PATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "align: error: git is not installed, or not on PATH; install it first"
    ]
    assert list(tmp_path.iterdir()) == []
