"""A run's worktree: its revision and parameters, and what git does not hold (of `dvc add`, or ignored)."""

import pytest

from align.errors import ConfigError, DataError
from align.services.git import changes, git
from flows.checkout import run_branch
from flows.checkout.workspace import in_worktree
from flows.request import Request
from tests.support import small_git
from tests.support.dvc_projects import commit_all, environment, make_repository, shell

PARAMS = """\
paths:
  archive: mydata/pairs
  evaluation: data/evaluation
  policy: data/policy
  checkpoints: checkpoints
  reports: reports
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


@pytest.fixture(name="project")
def _project(tmp_path, monkeypatch):
    """A project with an archive and queries in mydata/, which git ignores, and a model that `dvc add` keeps."""
    root = make_repository(tmp_path / "project", {"params.yaml": PARAMS, "dvc.yaml": DVC_YAML}, "")
    for name, value in environment(root, {}).items():
        monkeypatch.setenv(name, value)
    for folder in ("mydata/pairs", "imported"):
        (root / folder).mkdir(parents=True)
    (root / "mydata/pairs/table.csv").write_text("file,caption\n")
    (root / "mydata/queries.json").write_text("[]")
    (root / "imported/config.json").write_text("{}")
    shell(root, "dvc add --quiet imported", {})
    commit_all(root)
    return root


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


STORE = "store:\n  cache: .align/store\n  features: .align/features\n"
SMALL_PARAMS = f"paths:\n  checkpoints: checkpoints # where\n{STORE}filter:\n  min_words: 3 # paper 3\n"


@pytest.fixture
def repo(tmp_path):
    """A git and DVC repository with one source file and params.yaml, everything committed."""
    files = {
        "align/project/code.py": "x = 1\n", "params.yaml": SMALL_PARAMS, ".gitignore": ".align/\n",
        ".dvc/config": "[core]\n    analytics = false\n", ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    }  # fmt: skip
    return small_git.write(tmp_path / "repo", files)


def test_a_worktree_of_its_own(repo):
    request = Request(name="x", overrides={"filter.min_words": 4})
    with in_worktree(repo, request, log=lambda line: None) as workspace:
        assert workspace.root != repo and not workspace.dirty
        assert (workspace.root / "params.yaml").read_text() == SMALL_PARAMS.replace("3 #", "4 #")  # comments stay
        (workspace.root / "checkpoints" / "step").write_text("7")
        (workspace.root / ".align/features/seen").touch()
        (workspace.root / ".align/store/pictures").mkdir()
        config = (workspace.root / ".dvc/config.local").read_text()
        assert str(repo / ".dvc" / "cache") in config
    assert not workspace.root.exists()
    assert (repo / "checkpoints" / "step").read_text() == "7"  # survives, so that a cancelled run resumes
    assert (repo / ".align/features/seen").exists() and (repo / ".align/store/pictures").is_dir()
    assert (repo / "params.yaml").read_text() == SMALL_PARAMS


def test_a_dirty_checkout_is_refused_or_snapshotted(repo):
    (repo / "dvc.lock").write_text("schema: '2.0'\n")  # a result, not a change
    assert changes(repo) == []
    (repo / "align/project/code.py").write_text("x = 3\n")
    with pytest.raises(DataError, match=r"align/project/code\.py"), in_worktree(repo, Request(), log=print):
        pass
    with in_worktree(repo, Request(snapshot_dirty=True), log=lambda line: None) as workspace:
        assert workspace.dirty
        assert (workspace.root / "align/project/code.py").read_text() == "x = 3\n"
    with in_worktree(repo, Request(ref="HEAD~0"), log=lambda line: None) as workspace:
        assert (workspace.root / "align/project/code.py").read_text() == "x = 1\n"
    with (
        pytest.raises(DataError, match="'nowhere' names no commit"),
        in_worktree(repo, Request(ref="nowhere"), log=print),
    ):
        pass


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("filter.words", 5, r"filter\.words"),
        ("paths.checkpoints", "data/../../person", r"paths\.checkpoints = .*writes there only"),
    ],
)
def test_an_unknown_override_or_another_tree_to_write_in_makes_no_worktree(repo, key, value, refused):
    with pytest.raises(ConfigError, match=refused), in_worktree(repo, Request(overrides={key: value}), log=print):
        pass
