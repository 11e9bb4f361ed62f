"""Stages that the cache has are checked out at once, and DVC then finds them unchanged: real DVC over stub stages."""

import os
import shutil
from pathlib import Path

import pytest

from align.services.git import git
from flows.checkout.stage_states import check_out, read_states, read_status
from flows.dag import Selection, read_dag, stale
from flows.tasks.run_context import RunContext
from tests.support.dvc_projects import shell
from tests.support.local_stack import stub_repository
from tests.support.warm import commands


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose stages have run."""
    root = tmp_path_factory.mktemp("made") / "repo"
    stub_repository(root)
    path = f"{root}/bin{os.pathsep}{commands()}{os.pathsep}{os.environ['PATH']}"
    shell(
        root, "dvc repro --quiet index", {"PATH": path, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )  # the stub prints it
    return root


@pytest.mark.parametrize("damaged", [False, True])
def test_a_worktree_after_one_call_of_dvc(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    root, tree = tmp_path / "repo", tmp_path / "tree"
    shutil.copytree(made, root, symlinks=True)
    monkeypatch.setenv("PATH", f"{root}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    git(root, "worktree", "add", "--quiet", "--detach", str(tree))
    (tree / ".dvc/config.local").write_text(f"[cache]\n    dir = {root}/.dvc/cache\n")
    run = RunContext(root=tree, checkout=root, chosen=Selection(read_dag(tree)))
    states = read_states(run)
    assert set(states.locks) == {"ingest", "pretrain", "index"}
    assert {one.stage for one in states.stages if one.state == "runs"} <= {"unused"}
    if damaged:  # since then: the table of pretrain's out
        for file in (root / ".dvc/cache/files/md5").glob("*/*"):
            if file.read_bytes() == (root / "models/pretrained/table").read_bytes():
                file.chmod(0o644)
                file.unlink()
    said: list[str] = []
    status = check_out(run, states.locks, said.append)
    assert status == read_status(tree)  # DVC's, read anew
    changed = stale(run.chosen.dag, status) - {"unused"}
    if damaged:
        assert "pretrain" in changed  # it is run, as before
    else:
        assert changed == set() and said == []
        assert (tree / "dvc.lock").read_bytes() == (root / "dvc.lock").read_bytes()
        assert (tree / "models/pretrained/table").read_text() == (root / "models/pretrained/table").read_text()
