"""What goes through DVC's remote, between two clones of a small repository, and by `dvc push --all-branches` into the
folder of a checkout, with the line that docs/operations.md says to type before: without it DVC writes into
/.align/remote.
"""

import json
import os
import re
import shutil
import subprocess

import pytest

from align.services.git import git
from tests.support import ROOT
from tests.support.dvc_projects import commit_all, make_repository, shell
from tests.support.remote_worker import use_remote
from tests.support.warm import commands

DVC_YAML = """\
stages:
  make: {cmd: cp code made, deps: [code], outs: [made]}
  train: {cmd: mkdir model && cat made added > model/weights && echo ran >> ../ran, deps: [made, added], outs: [model]}
  far: {cmd: cp made far, deps: [made, "s3://bucket/key"], outs: [far]}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A head, which has run `make`, and a worker."""
    base = tmp_path_factory.mktemp("base")
    head, worker = machines(base)
    head.mkdir(parents=True)
    git(head, "init", "--quiet")
    (head / "dvc.yaml").write_text(DVC_YAML)
    (head / "code").write_text("1")
    (head / "added").write_text("2")
    for command in (["init", "-q"], ["add", "-q", "added"], ["repro", "-q", "-s", "make"]):
        dvc(head, *command)
    commit_all(head)
    git(base, "clone", "--quiet", str(head), str(worker))
    return base


@pytest.fixture(scope="module")
def offered(base, tmp_path_factory):
    """The two, after the worker has run `train` for the head and has given it; and what the head had offered."""
    folder = tmp_path_factory.mktemp("offered")
    head, worker = copy(base, folder)
    offered = transfer(head, "offer", "train")
    assert not offered["found"]
    assert not accept(worker, offered)["found"]
    assert (worker / "added").read_text() == "2"
    dvc(worker, "repro", "-q", "-s", "train")
    transfer(worker, "give", "train")
    return folder, offered


@pytest.fixture
def clones(base, tmp_path):
    return copy(base, tmp_path)


@pytest.fixture
def given(offered, tmp_path):
    return copy(offered[0], tmp_path)


def copy(base, to):
    """Copies head and worker, with a remote that both reach."""
    shutil.copytree(base, to, symlinks=True, dirs_exist_ok=True)
    for root in machines(to):
        use_remote(root, to / "remote")
    return machines(to)


def machines(folder):
    return folder / "head/clone", folder / "worker/clone"


def dvc(root, *words):
    return called(root, "dvc", *words).stdout


def called(root, module, *words):
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(
        [str(commands() / "python"), "-m", module, *words], cwd=root, env=env, capture_output=True, text=True
    )
    assert module != "dvc" or done.returncode == 0, done.stderr
    return done


def transfer(root, *words):
    done = called(root, "align.services.dvc.transfer", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def accept(worker, offered):
    return transfer(worker, "accept", "train", offered["remote"], json.dumps(offered["reads"]))


def test_a_stage_goes_there_and_comes_back(given, offered):
    head, worker = given
    assert transfer(head, "take", "train") == {"found": True, "key": offered[1]["key"]}
    assert "is cached" in dvc(head, "repro", "-s", "train")
    assert (head / "model/weights").read_text() == "12"
    assert not (head.parent / "ran").exists()
    # to whoever comes later the same is known
    (worker.parent / "ran").unlink()
    again = offered[1] | {"remote": str(head.parents[1] / "remote")}
    assert accept(worker, again)["found"]


def test_a_result_of_other_data_is_none(clones):
    head, worker = clones
    accept(worker, transfer(head, "offer", "train"))
    (worker / "made").unlink()
    (worker / "made").write_text("other bytes")
    dvc(worker, "repro", "-q", "-s", "train")
    transfer(worker, "give", "train")
    assert not transfer(head, "take", "train")["found"]


def test_an_earlier_result_that_dvc_lock_names_is_none(given, offered):
    head, _ = given
    transfer(head, "take", "train")
    dvc(head, "repro", "-q", "-s", "train")
    (head / "added").unlink()
    (head / "added").write_text("3")
    dvc(head, "add", "-q", "added")
    again = transfer(head, "offer", "train")
    assert not again["found"]
    assert again["key"] != offered[1]["key"]
    assert not transfer(head, "take", "train")["found"]


def test_a_dep_that_differs_there_is_named_before_the_stage_runs(clones):
    head, worker = clones
    offered = transfer(head, "offer", "train")
    done = called(
        worker, "align.services.dvc.transfer", "accept", "train", offered["remote"],
        json.dumps(offered["reads"] | {"added": "0" * 32}),
    )  # fmt: skip
    assert done.returncode == 1
    assert "train reads added, which is not the same on this machine" in done.stderr


def test_an_entry_whose_bytes_are_missing_is_no_result(given, tmp_path):
    head, worker = given
    objects = [path for path in (tmp_path / "remote/files/md5").rglob("*") if path.is_file()]
    lost = [path for path in objects if path.read_bytes() == b"12" or path.suffix == ".dir"]  # as `dvc gc --cloud` does
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    assert not transfer(head, "take", "train")["found"]
    assert not transfer(head, "offer", "train")["found"]  # so a worker is asked again
    transfer(worker, "give", "train")
    assert transfer(head, "take", "train")["found"]


def test_another_remote_is_refused(clones, tmp_path):
    head, worker = clones
    offered = transfer(head, "offer", "train")
    dvc(worker, "remote", "modify", "--local", "shared", "url", str(tmp_path / "mine"))
    done = called(worker, "align.services.dvc.transfer", "accept", "train", offered["remote"], "{}")
    assert done.returncode == 1
    assert f"this machine's is {tmp_path / 'mine'}, and that of the run {offered['remote']}" in done.stderr


def test_what_will_not_do_is_known_before(clones):
    head, _ = clones
    found = transfer(head, "check", "train", "far")
    assert found["kept"] == ["added", "made"]
    [refused] = found["refused"]
    assert refused.startswith("far reads s3://bucket/key, and DVC keeps no result")
    dvc(head, "remote", "modify", "--local", "shared", "url", "mine")
    assert "which no other machine sees" in transfer(head, "check", "train")["refused"][0]
    dvc(head, "config", "--local", "--unset", "core.remote")
    done = called(head, "align.services.dvc.transfer", "check", "train")
    assert (done.returncode, "DVC has no default remote" in done.stderr) == (1, True)


PUSHED = "stages:\n  one:\n    cmd: cp value made\n    deps: [value]\n    outs: [made]\n"


def test_all_branches_are_pushed_into_the_checkout_s_own_folder(tmp_path):
    root = make_repository(tmp_path / "project", {"dvc.yaml": PUSHED, "value": "1"}, "")
    for number in (1, 2):
        git(root, "switch", "--quiet", "-c", f"run/{number}")
        (root / "value").write_text(f"value of this test, {number}")
        shell(root, "dvc repro --quiet && git add -f dvc.lock", {})
        commit_all(root)
    [line] = re.findall(r"^    (dvc remote modify --local .*)$", (ROOT / "docs/operations.md").read_text(), re.M)
    shell(root, line, {})
    moved = tmp_path / "moved"
    root.rename(moved)  # the line holds for wherever the checkout is
    shell(moved, "dvc push --quiet --all-branches", {})
    assert len([path for path in (moved / ".align/remote/files").rglob("*") if path.is_file()]) == 2
    assert not root.exists()
    shutil.rmtree(moved / ".dvc/cache")
    shell(moved, "dvc fetch --quiet --all-branches && dvc checkout --quiet", {})
    assert (moved / "made").read_text() == "value of this test, 2"
