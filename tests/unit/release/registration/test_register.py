"""A tag of git for each registered version: on the commit that has its dvc.lock, made once, never moved."""

import hashlib
import json
import shutil

import pytest

from align.durable.files import sha256_folder
from align.errors import CorruptError
from align.formats.model_folder import model_digest
from align.formats.policy import OPTED_OUT, Entry, OptedOut, write_opted_out
from align.release.registration.register import keep_in_git, log_index, read_origin
from align.services.git import git
from align.services.tracking.registry import INDEX_DIGEST, Version
from flows.checkout import run_branch
from tests.support import tiny_model
from tests.support.dvc_projects import make_repository
from tests.support.memory_mlflow import MemoryTracker


@pytest.fixture(name="root")
def _root(tmp_path):
    root = make_repository(tmp_path / "project", {"dvc.yaml": "stages: {}\n", "params.yaml": "{}\n"}, "")
    write(root, "one")
    return root


def write(root, lock):
    """Writes a dvc.lock; returns its digest."""
    (root / "dvc.lock").write_text(f"{lock}\n")
    return hashlib.sha256(f"{lock}\n".encode()).hexdigest()


def keep(root, number, lock, revision=None, name="align"):
    """Tags version `number`, which was registered from this dvc.lock."""
    digest = hashlib.sha256(f"{lock}\n".encode()).hexdigest()
    version = Version(name, number, "run", {"align.dvc_lock": digest})
    now = hashlib.sha256((root / "dvc.lock").read_bytes()).hexdigest()
    return keep_in_git(root, version, revision or git(root, "rev-parse", "HEAD"), now)


def tags(root):
    return git(root, "tag").splitlines()


def test_the_commit_of_a_run_is_tagged_and_stays_without_its_branch(root):
    run = run_branch.record(root, "demo", "a run")
    for _ in range(2):
        assert keep(root, 1, "one", run.commit) == "align/align/v1"
    assert git(root, "rev-parse", "align/align/v1") == run.commit
    write(root, "another run's")  # while this one is registered
    assert keep(root, 1, "one", run.commit) == "align/align/v1"
    git(root, "branch", "--quiet", "-D", "run/demo")
    git(root, "gc", "--quiet", "--prune=now")
    assert git(root, "show", "align/align/v1:dvc.lock") == "one"


def test_what_nobody_committed_is_in_a_commit_of_its_own(root):
    """After `dvc repro` and `align register`: main has no dvc.lock, and the checkout may differ from it."""
    (root / "params.yaml").write_text("{a: 1}\n")
    head = git(root, "rev-parse", "HEAD")
    before = git(root, "status", "--porcelain")
    assert keep(root, 1, "one", f"{head}-dirty") == keep(root, 1, "one", f"{head}-dirty") == "align/align/v1"
    assert git(root, "rev-parse", "align/align/v1^") == head and git(root, "status", "--porcelain") == before
    assert git(root, "show", "align/align/v1:dvc.lock") == "one"
    assert git(root, "show", "align/align/v1:params.yaml") == "{a: 1}"


def test_a_tag_is_never_moved(root):
    keep(root, 1, "one")
    first = git(root, "rev-parse", "align/align/v1")
    write(root, "two")  # the same model again, by another way
    assert keep(root, 1, "one") == "align/align/v1" and tags(root) == ["align/align/v1"]
    assert keep(root, 1, "two") == "align/align/v1-2"  # version 1 of another registry
    assert keep(root, 1, "two") == "align/align/v1-2" and keep(root, 12, "two") == "align/align/v12"
    assert git(root, "rev-parse", "align/align/v1") == first
    assert git(root, "show", "align/align/v1-2:dvc.lock") == "two"


def test_every_name_of_a_model_is_one_of_a_tag(root):
    for name, tag in (("a b", "a-b"), ("v1..x.lock", "v1-x-lock"), ("é", "é"), (".", "-")):
        assert keep(root, 3, "one", name=name) == f"align/{tag}/v3"


def test_without_a_repository_or_a_commit_there_is_no_tag(tmp_path):
    version = Version("align", 1, "run", {})
    assert keep_in_git(tmp_path, version, "", "") is None
    git(tmp_path, "init", "--quiet")
    assert keep_in_git(tmp_path, version, "", "") is None


@pytest.fixture
def model(tmp_path):
    """models/finetuned, beside models/packaged, data/index and a registry."""
    made = tiny_model.write(tmp_path / "made").rename(tmp_path / "finetuned")
    shutil.copytree(made, tmp_path / "packaged/artifacts/finetuned")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/index.json").write_text(json.dumps({"model_digest": model_digest(made)}))
    return made


def logged(tracker, model, version=None):
    root = model.parent
    if version is None:
        version = tracker.registry.create_version("align", tracker.start_run("align", "x"), "model", {})
    return dict(log_index(tracker, version, root / "index", model, root / "packaged"))


def test_the_index_of_its_model_and_no_other(model, capsys):
    tracker, index = MemoryTracker(model.parent / "mlflow"), model.parent / "index"
    digest = sha256_folder(index)
    assert logged(tracker, model) == {INDEX_DIGEST: digest}
    (version,) = tracker.registry.versions("align")
    assert version.tags == {INDEX_DIGEST: digest}
    assert (tracker.root / version.run_id / "index" / digest[:16] / "index.json").is_file()
    assert logged(tracker, model, version) == {}  # it has it already

    (index / "index.json").write_text(json.dumps({"model_digest": "another"}))
    assert logged(tracker, model) == {} and "is of another model, so version 2 gets no index" in capsys.readouterr().err
    (index / "index.json").write_text(json.dumps({"model_digest": model_digest(model)}))
    weights = model.parent / "packaged/artifacts/finetuned/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")  # another model was packaged
    assert logged(tracker, model) == {}
    shutil.rmtree(index)
    assert logged(tracker, model) == {}
    assert [INDEX_DIGEST in one.tags for one in tracker.registry.versions("align")] == [True, False, False, False]


def test_an_index_that_changes_while_it_is_sent_names_no_version(model, monkeypatch):
    tracker, index = MemoryTracker(model.parent / "mlflow"), model.parent / "index"
    send = tracker.log_folder

    def slow(run_id, folder, name):
        send(run_id, folder, name)
        (index / "items").touch()

    monkeypatch.setattr(tracker, "log_folder", slow)
    with pytest.raises(CorruptError, match="changed while it was sent to MLflow"):
        logged(tracker, model)
    assert [dict(one.tags) for one in tracker.registry.versions("align")] == [{}]


def test_the_policy_that_data_obeyed_is_named_by_its_contents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def digest(name, *hosts, filtered=True):
        (tmp_path / name).mkdir(exist_ok=True)
        write_opted_out(tmp_path / name, OptedOut(Entry("host", host, "", "2026-01-02") for host in hosts))
        if filtered:
            read = hashlib.md5((tmp_path / name / OPTED_OUT).read_bytes()).hexdigest()
            (tmp_path / "dvc.lock").write_text(f"stages: {{filter: {{deps: [{{md5: {read}}}]}}}}")
        return read_origin("0123abc", [], tmp_path / name).tags().get("align.policy_digest")

    first = digest("one", "a.org")
    assert first is not None and first == digest("other", "a.org") != digest("third", "b.org")
    assert digest("one", "a.org", "c.org", filtered=False) is None  # a take-down that this data has not seen
    assert "align.policy_digest" not in read_origin("0123abc", [], tmp_path / "absent").tags()
