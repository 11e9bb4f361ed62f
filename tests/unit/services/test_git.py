"""git in a folder speaks of that folder, whatever a hook's environment names."""

import re

import pytest

from align.errors import DataError
from align.services.git import changes, git, git_if_any, network_git, resolve
from tests.support import ROOT, small_git


def test_a_hook_of_another_repository_changes_nothing(tmp_path, monkeypatch):
    root, elsewhere = (small_git.write(tmp_path / name, {"file": name}) for name in ("ours", "other"))
    ours, other = (git(repository, "rev-parse", "HEAD") for repository in (root, elsewhere))
    for name, value in {"DIR": ".git", "WORK_TREE": "", "INDEX_FILE": ".git/index"}.items():
        monkeypatch.setenv(f"GIT_{name}", str(elsewhere / value))
    assert resolve(root, "HEAD") == ours != other
    assert git_if_any(root, "show", "HEAD:file") == "ours"
    (root / "file").write_text("edited")
    (root / "new file").touch()
    (root / "dvc.lock").touch()
    assert changes(root) == ["file", '"new file"'] and changes(elsewhere) == []


def test_what_fails_is_one_line_or_none(tmp_path, monkeypatch):
    root = small_git.write(tmp_path / "ours", {"file": "ours"})
    assert git_if_any(root, "show", "nothing") is None and git_if_any(root, "show", "a\0b") is None
    with pytest.raises(DataError, match="'nothing' names no commit in "):
        resolve(root, "nothing")
    with pytest.raises(DataError, match=r"git show in .*: an argument holds a null byte"):
        git(root, "show", "a\0b")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_if_any(root, "status") is None
    with pytest.raises(DataError, match="git is not installed"):
        git(root, "status")


def test_a_server_that_asks_for_a_password_is_not_waited_for(tmp_path):
    root = small_git.write(tmp_path / "ours", {"file": "ours"})
    git(root, "config", "alias.shown", "!echo $GIT_TERMINAL_PROMPT $GIT_SSH_COMMAND")
    assert network_git(root, "shown").startswith("0 ssh -oBatchMode=yes")


def test_nothing_else_runs_git():
    modules = [path for folder in ("align", "flows", "infra") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in modules if re.search(r"""["']git["'],""", path.read_text("utf-8"))] == ["git.py"]
