"""A run's worktree: its revision and parameters, and what git does not hold (of `dvc add`, or ignored)."""

import os
import shutil
import subprocess

import pytest

from align.durable.locks import tried
from align.errors import ConfigError, DataError, LockedError
from align.services.git import changes, git
from flows.checkout import run_branch, worktree
from flows.checkout.worktree import NUM_KEPT, in_worktree, prune
from flows.request import Request
from tests.support.dvc_projects import commit_all, enter, make_repository, shell

PARAMS = """\
paths:
  archive: mydata/pairs
  evaluation: data/evaluation
  policy: data/policy
  checkpoints: checkpoints # where
  reports: reports
store:
  cache: .align/store
  features: .align/features
filter:
  min_words: 3 # paper 3
index:
  queries: mydata/queries.json
finetune:
  from: imported
"""
DVC_YAML = """\
stages:
  ingest:
    cmd: mkdir -p data && cp -r ${paths.archive} data/raw
    deps: ["${paths.archive}"]
    outs: [data/raw]
  finetune:
    cmd: mkdir -p models && cp -r ${finetune.from} models/finetuned
    deps: ["${finetune.from}"]
    outs: [models/finetuned]
"""
REQUEST = Request(overrides={"index.queries": "mydata/queries.json"})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with an archive and queries in mydata/, which git ignores, and a model that `dvc add` keeps."""
    files = {"params.yaml": PARAMS, "dvc.yaml": DVC_YAML, "code.py": "x = 1\n"}
    root = make_repository(tmp_path_factory.mktemp("made") / "project", files, "")
    for folder in ("mydata/pairs", "imported"):
        (root / folder).mkdir(parents=True)
    (root / "mydata/pairs/table.csv").write_text("file,caption\n")
    (root / "mydata/queries.json").write_text("[]")
    (root / "imported/config.json").write_text("{}")
    shell(root, "dvc add --quiet imported", {})
    commit_all(root)
    return root


@pytest.fixture(name="project")
def _project(made, tmp_path, monkeypatch):
    """A copy of its own."""
    return enter(shutil.copytree(made, tmp_path / "project", symlinks=True), monkeypatch)


def test_a_run_has_the_model_that_dvc_keeps(project):
    (project / "imported/config.json").write_text("changed since")
    with in_worktree(project, REQUEST, log=lambda line: None) as work:
        assert (work.root / "imported/config.json").read_text() == "{}"
        shell(work.root, "dvc repro finetune", {})
        assert (work.root / "models/finetuned/config.json").read_text() == "{}"
    assert (project / "imported/config.json").read_text() == "changed since"


def test_a_run_reads_the_inputs_that_git_ignores(project):
    shell(project, "dvc repro ingest", {})
    with in_worktree(project, REQUEST, log=lambda line: None) as work:
        assert (work.root / "mydata/queries.json").read_text() == "[]"
        shell(work.root, "dvc repro ingest", {})
        assert (work.root / "data/raw/table.csv").read_text() == "file,caption\n"
        assert (work.root / "dvc.lock").read_bytes() == (project / "dvc.lock").read_bytes()
    assert (project / "mydata/pairs/table.csv").read_text() == "file,caption\n"  # the link alone is removed


def test_another_archive_of_the_run_is_found_too(project):
    (project / "mydata/more").mkdir()
    (project / "mydata/more/table.csv").touch()
    with in_worktree(project, Request(overrides={"paths.archive": "mydata/more"}), log=lambda line: None) as work:
        assert (work.root / "mydata/more/table.csv").exists() and not (work.root / "mydata/pairs").exists()


def test_no_link_stands_for_what_git_or_a_stage_has(project):
    """An older revision has no newer files of git; a link where a stage writes would let it replace the checkout's."""
    (project / "data/policy").mkdir(parents=True)
    (project / "data/policy/accepted.json").touch()
    commit_all(project, "policy")
    (project / "models/finetuned").mkdir(parents=True)
    request = Request(ref="HEAD~1", overrides={"finetune.from": "models/finetuned", "paths.archive": "../elsewhere"})
    (project.parent / "elsewhere").mkdir()
    with in_worktree(project, request, log=lambda line: None) as work:
        assert not (work.root / "data/policy").exists()
        assert not (work.root / "models/finetuned").exists()
        assert not (work.root.parent / "elsewhere").exists()


def test_a_run_s_branch_has_what_it_measured(project):
    """Before people commit them: sets, labelled queries, and which data `dvc add` keeps."""
    (project / "data/evaluation").mkdir(parents=True)
    for name in ("data/evaluation/mine.tar", "data/evaluation/mine.json", "labels.json", "notes.txt"):
        (project / name).touch()
    (project / "data/evaluation/draft.tar").touch()
    (project / "mydata/private.dvc").touch()
    (project / ".gitignore").write_text((project / ".gitignore").read_text() + "draft.tar\n")
    (project / "params.yaml").write_text(PARAMS.replace("mydata/queries.json", "labels.json"))
    (project / "other").mkdir()
    (project / "other/config.json").write_text("{}")
    shell(project, "dvc add --quiet other", {})
    commit = run_branch.record(project, "mine", "run mine").commit
    new = git(project, "diff", "--name-only", "--diff-filter=A", "HEAD", commit).splitlines()
    assert new == ["data/evaluation/mine.json", "data/evaluation/mine.tar", "labels.json", "other.dvc"]


def test_a_run_s_branch_lacks_inputs_that_are_elsewhere_or_ignored(project):
    (project.parent / "sets").mkdir()
    (project.parent / "sets/far.json").touch()
    (project / "mydata/sets").mkdir()
    for folder in ("../sets", "mydata/sets", str(project.parent / "sets"), "absent"):
        (project / "params.yaml").write_text(PARAMS.replace("data/evaluation", folder))
        commit = run_branch.record(project, "mine", "run mine").commit
        assert git(project, "diff", "--name-only", "HEAD", commit) == "params.yaml"


def test_a_worktree_of_its_own(project):
    request = Request(name="x", overrides={"filter.min_words": 4})
    with in_worktree(project, request, log=lambda line: None) as workspace:
        assert workspace.root != project and not workspace.dirty
        assert (workspace.root / "params.yaml").read_text() == PARAMS.replace("3 #", "4 #")  # comments stay
        (workspace.root / "checkpoints" / "step").write_text("7")
        (workspace.root / ".align/features/seen").touch()
        (workspace.root / ".align/store/pictures").mkdir()
        config = (workspace.root / ".dvc/config.local").read_text()
        assert str(project / ".dvc" / "cache") in config
    assert not workspace.root.exists()
    assert (project / "checkpoints" / "step").read_text() == "7"  # survives, so that a cancelled run resumes
    assert (project / ".align/features/seen").exists() and (project / ".align/store/pictures").is_dir()
    assert (project / "params.yaml").read_text() == PARAMS


def test_a_dirty_checkout_is_refused_or_snapshotted(project):
    (project / "dvc.lock").write_text("schema: '2.0'\n")  # a result, not a change
    assert changes(project) == []
    (project / "code.py").write_text("x = 3\n")
    with pytest.raises(DataError, match=r"code\.py"), in_worktree(project, Request(), log=print):
        pass
    with in_worktree(project, Request(snapshot_dirty=True), log=lambda line: None) as workspace:
        assert workspace.dirty
        assert (workspace.root / "code.py").read_text() == "x = 3\n"
    with in_worktree(project, Request(ref="HEAD~0"), log=lambda line: None) as workspace:
        assert (workspace.root / "code.py").read_text() == "x = 1\n"
    with (
        pytest.raises(DataError, match="'nowhere' names no commit"),
        in_worktree(project, Request(ref="nowhere"), log=print),
    ):
        pass


@pytest.mark.parametrize(("key", "value", "refused"), [
    ("filter.words", 5, r"filter\.words"),
    ("paths.checkpoints", "data/../../person", r"paths\.checkpoints = .*writes there only"),
])  # fmt: skip
def test_an_unknown_override_or_another_tree_to_write_in_makes_no_worktree(project, key, value, refused):
    with pytest.raises(ConfigError, match=refused), in_worktree(project, Request(overrides={key: value}), log=print):
        pass


def failed(project, request):
    """The worktree of a run that fails."""
    with pytest.raises(RuntimeError), in_worktree(project, request, log=lambda line: None) as work:
        (work.root / "reports").mkdir()
        (work.root / "reports/report.json").touch()
        raise RuntimeError
    return work.root


def is_clear(project):
    assert list((project / ".align/worktrees").iterdir()) == []
    assert len(git(project, "worktree", "list").splitlines()) == 1


def test_a_failed_run_s_worktree_stays_until_the_next_equal_run(project):
    path = failed(project, REQUEST)
    assert (path / "reports/report.json").is_file()
    with in_worktree(project, REQUEST, log=lambda line: None) as work:
        assert work.root == path and not (path / "reports").exists()
    is_clear(project)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_half_made_worktree_does_not_block_the_next_equal_run(project, is_whole):
    """git was killed while it made it: it is locked, which `git worktree prune` respects for good."""
    with in_worktree(project, REQUEST, log=lambda line: None) as work:
        path = work.root
    git(project, "worktree", "add", "--detach", "--lock", "--reason", "initializing", str(path), "HEAD")
    if not is_whole:
        shutil.rmtree(path)
    with in_worktree(project, REQUEST, log=lambda line: None) as work:
        assert work.root == path and (path / "params.yaml").is_file()
    is_clear(project)


def test_a_trainer_that_still_saves_is_waited_for(project):
    """It was told to stop when its run was killed, and writes its checkpoint through the worktree's link."""
    path = failed(project, REQUEST)
    trainer = subprocess.Popen(["sh", "-c", "sleep 2; echo 7 > checkpoints/step"], cwd=path)
    with in_worktree(project, REQUEST, log=lambda line: None):
        assert trainer.wait() == 0 and (project / "checkpoints/step").read_text() == "7\n"


def test_a_process_that_does_not_leave_is_named(project, monkeypatch):
    monkeypatch.setattr(worktree, "GRACE_S", -5.0)
    path = failed(project, REQUEST)
    with subprocess.Popen(["sleep", "60"], cwd=path) as process:
        words = f"process {process.pid} of a killed run still works there"
        with pytest.raises(LockedError, match=words), in_worktree(project, REQUEST, print):
            pass
        process.kill()


def test_the_newest_failed_runs_are_kept_and_live_ones(project):
    paths = [failed(project, Request(overrides={"filter.min_words": number})) for number in range(4, 6 + NUM_KEPT)]
    for number, path in enumerate(paths):
        os.utime(path, (number, number))
    said = []
    with tried(project / ".align/locks" / paths[0].name) as mine:  # a run works there
        assert mine
        prune(project, said.append)
    assert [path.exists() for path in paths] == [True, False] + NUM_KEPT * [True] and len(said) == 1
    prune(project, said.append)
    assert not paths[0].exists() and len(git(project, "worktree", "list").splitlines()) == 1 + NUM_KEPT
