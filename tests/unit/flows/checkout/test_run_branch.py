"""The branch of a run: never moved, one for each result, whatever the name and however many runs end at once."""

import os
import subprocess
import threading
from itertools import pairwise

import pytest

from align.errors import ConfigError, DataError
from align.services.git import git, resolve
from flows.checkout import run_branch
from tests.support import small_git
from tests.support.warm import commands


@pytest.fixture(name="repo")
def _repo(tmp_path):
    """A git repository with one source file, committed."""
    return small_git.write(tmp_path / "repo", {"align/project/code.py": "x = 1\n"})


def branches(repo):
    return git(repo, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/heads/run").splitlines()


def test_record_leaves_head_index_and_files_alone(repo):
    (repo / "align/project/code.py").write_text("x = 2\n")
    (repo / "align/new.py").write_text("y = 1\n")
    (repo / "dvc.lock").write_text("schema: '2.0'\n")
    (repo / "private.txt").write_text("not ours\n")
    before = git(repo, "status", "--porcelain"), resolve(repo, "HEAD")
    recorded = run_branch.record(repo, "demo", "run demo")
    assert (git(repo, "status", "--porcelain"), resolve(repo, "HEAD")) == before
    assert resolve(repo, "run/demo") == recorded.commit
    assert git(repo, "show", "run/demo:align/project/code.py") == "x = 2"
    files = git(repo, "ls-tree", "-r", "--name-only", "run/demo").splitlines()
    assert {"align/new.py", "dvc.lock"} <= set(files)
    assert "private.txt" not in files


def test_another_result_is_another_branch_and_the_first_stays(repo):
    tips = []
    for text in ("x = 2\n", "x = 3\n", "x = 4\n"):
        (repo / "align/project/code.py").write_text(text)
        run_branch.record(repo, "demo", "run demo")
        tips.append(git(repo, "for-each-ref", "--sort=-committerdate", "--format=%(objectname)", "refs/heads/run"))
    assert branches(repo) == ["demo", "demo-2", "demo-3"]
    assert git(repo, "show", "run/demo:align/project/code.py") == "x = 2"
    assert all(set(earlier.split()) < set(later.split()) for earlier, later in pairwise(tips))


def test_an_equal_result_adds_no_branch_and_says_which_has_it(repo):
    (repo / "align/project/code.py").write_text("x = 2\n")
    first = run_branch.record(repo, "demo", "run demo")
    (repo / "align/project/code.py").write_text("x = 3\n")
    second = run_branch.record(repo, "demo", "run demo")
    again = run_branch.record(repo, "demo", "another message")
    assert (first.name, second.name) == ("demo", "demo-2") and first.is_new and second.is_new
    assert (again.name, again.commit, again.is_new) == ("demo-2", second.commit, False)
    (repo / "align/project/code.py").write_text("x = 2\n")
    assert run_branch.record(repo, "demo", "run demo") == run_branch.Recorded("demo", first.commit, is_new=False)
    git(repo, "commit", "--quiet", "--allow-empty", "-m", "second")  # the same files, made from another commit
    assert run_branch.record(repo, "demo", "run demo").name == "demo-3"


def test_a_run_on_its_own_branch_stays_there(repo):
    (repo / "align/project/code.py").write_text("x = 2\n")
    first = run_branch.record(repo, "demo", "run demo")
    git(repo, "checkout", "--quiet", "--force", "run/demo")
    run_branch.check_name(repo, "demo")
    assert run_branch.record(repo, "demo", "run demo") == run_branch.Recorded("demo", first.commit, is_new=False)
    (repo / "align/project/code.py").write_text("x = 3\n")
    assert run_branch.record(repo, "demo", "run demo").name == "demo-2"
    assert resolve(repo, "run/demo") == first.commit == resolve(repo, "HEAD")


def test_numbers_of_people_are_no_numbers_of_ours(repo):
    for name in ("demo-20261127", "demo-01", "demo-x", "demonstration", "demo-1"):
        git(repo, "branch", f"run/{name}")
    assert run_branch.next_name(repo, "demo") == "demo"
    for name in ("demo-7", "demo-2"):
        git(repo, "branch", f"run/{name}")
    assert run_branch.next_name(repo, "demo") == "demo-8"
    git(repo, "branch", "run/demo-7-2")
    assert run_branch.next_name(repo, "demo-7") == "demo-7-3"


def in_a_process(repo, text, number):
    """A run in a worktree of its own, with these files."""
    worktree = repo.parent / f"worktree-{number}"
    git(repo, "worktree", "add", "--quiet", "--detach", str(worktree))
    (worktree / "align/project/code.py").write_text(text)
    script = (
        "import sys; from pathlib import Path; from flows.checkout import run_branch\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "run_branch.record(Path.cwd(), 'demo', 'run demo')\n"
    )
    command = [str(commands() / "python"), "-c", script]
    return subprocess.Popen(command, cwd=worktree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_runs_that_end_at_once_lose_nothing(repo):
    texts = ["x = 10\n", "x = 10\n", "x = 11\n", "x = 12\n", "x = 13\n", "x = 10\n"]
    runs = [in_a_process(repo, text, number) for number, text in enumerate(texts)]
    for run in runs:
        assert run.stdout and run.stdout.readline() == "ready\n"
    threads = [threading.Thread(target=run.communicate, args=("go\n",)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [run.returncode for run in runs] == [0] * len(runs)
    recorded = [git(repo, "show", f"run/{name}:align/project/code.py") + "\n" for name in branches(repo)]
    assert sorted(recorded) == sorted(set(texts))
    assert branches(repo) == ["demo", "demo-2", "demo-3", "demo-4"]


def test_hostile_names_are_refused_before_anything_runs(repo):
    reasons = dict.fromkeys(("a..b", "a b", "", "a\nb", "a\0b", "x.lock"), "not a valid branch")
    reasons |= {"--all": "begins with a dash", "x" * 300: "300 bytes long; at most 200", "é" * 101: "202 bytes long"}
    for name, why in (reasons | {"\udcff": "not UTF-8"}).items():
        with pytest.raises(ConfigError, match=why) as caught:
            run_branch.check_name(repo, name)
        assert len(str(caught.value)) < 200


def test_a_name_in_whose_way_a_branch_is(repo):
    git(repo, "branch", "run/a/b")
    git(repo, "branch", "run/c")
    for name in ("a", "c/d", "c/d/e"):
        with pytest.raises(ConfigError, match="git has a branch run/"):
            run_branch.check_name(repo, name)
    with pytest.raises(DataError):  # one that came meanwhile: git's own words, and no endless attempts
        run_branch.record(repo, "c/d", "run")
    for name in ("a/c", "cc", "a-2", "b"):
        run_branch.check_name(repo, name)
    git(repo, "branch", "-D", "run/c", "run/a/b")
    git(repo, "branch", "run")
    with pytest.raises(ConfigError, match="git has a branch run,"):
        run_branch.check_name(repo, "b")


def test_what_a_person_typed_in_prefect_becomes_a_branch(repo):
    names = {
        "a wide one": "a-wide-one", "mauve-cuckoo": "mauve-cuckoo", "Größe 2 · θ": "Größe-2-θ", "../../etc": "etc",
        "--all": "all", "a@{0}.lock": "a-0--lock", "x.lock": "x-lock", "a..b\x1b[31m\n": "a.b-31m", "///": "run",
        "": "run", "\ud800": "run", "x" * 300: "x" * 200, "日" * 100: "日" * 66,
    }  # fmt: skip
    for number, (typed, name) in enumerate(names.items()):
        assert run_branch.valid_name(typed) == name
        run_branch.check_name(repo, name)
        (repo / "align/project/code.py").write_text(f"x = {number + 2}\n")
        assert run_branch.record(repo, name, "run").is_new


def test_record_without_an_identity(repo, monkeypatch):
    git(repo, "config", "--unset", "user.name")
    git(repo, "config", "--unset", "user.email")
    git(repo, "config", "user.useConfigOnly", "true")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    assert git(repo, "show", "--no-patch", "--format=%an", run_branch.record(repo, "demo", "x").commit) == "align"
