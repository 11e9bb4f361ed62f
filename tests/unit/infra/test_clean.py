"""`make clean`: what it removes and what it refuses."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from align.local_stack import created
from align.services.dvc.commands import dvc
from infra import clean
from tests.support import ROOT
from tests.support.dvc_projects import enter, make_repository, shell

DVC_YAML = "stages:\n  make:\n    cmd: echo data > table\n    outs: [table]\n"


def make_clean(root):
    """Typed in a checkout with this repository's Makefile, and a Python whose path has a space."""
    python = root.with_name("my python")
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "clean", f"PYTHON={python}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(name="checkout")
def _checkout(tmp_path):
    """A checkout in which everything was run once; its path has a space."""
    root = tmp_path / "a checkout"
    root.mkdir()
    (root / "infra").symlink_to(ROOT / "infra")
    for name in (*clean.MADE_AGAIN, "remote", "prefect", "worktrees/demo", "locks"):
        (root / ".align" / name).mkdir(parents=True)
        (root / ".align" / name / "file").touch()
    (root / ".align/login").write_text("align:secret\n")
    for name in ("runtime", "dvc_plots", "checkpoints/0123456789abcdef-01234567", "mydata"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    return root


def files(root):
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {path for path in found if not path.startswith("infra/")}


def test_what_people_put_there_stays(checkout):
    done = make_clean(checkout)
    assert done.returncode == 0, done.stderr
    assert files(checkout) == {
        ".align/login", ".align/remote/file", ".align/prefect/file", ".align/worktrees/demo/file", ".align/locks/file",
        "checkpoints/0123456789abcdef-01234567/file", "mydata/file",
    }  # fmt: skip
    assert make_clean(checkout).returncode == 0  # nothing left to remove


def test_what_dvc_pushed_can_be_had_again(tmp_path, monkeypatch):
    files = {"dvc.yaml": DVC_YAML, "params.yaml": "{}\n"}
    root = enter(make_repository(tmp_path / "project", files, "/table\n/infra\n"), monkeypatch)
    (root / "infra").symlink_to(ROOT / "infra")
    shell(root, "dvc repro --quiet && dvc push --quiet && rm -rf .dvc/cache table", {})
    assert make_clean(root).returncode == 0
    dvc(root, "pull", "--quiet")
    assert (root / "table").read_text() == "data\n"


def test_running_services_are_refused(checkout):
    before = files(checkout) | {".align/services.json"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=checkout) as process:
        service = {"pid": process.pid, "created": created(process.pid)}
        (checkout / ".align/services.json").write_text(json.dumps({"worker": service, "prefect": service}))
        done = make_clean(checkout)
        process.kill()
    assert done.returncode != 0 and done.stderr.startswith(
        "align: error: nothing is removed: prefect, worker of `make up` still run: stop them with `make down` first\n"
    )
    assert files(checkout) == before
    assert make_clean(checkout).returncode == 0  # killed: the list is out of date
    assert ".align/services.json" in files(checkout)


def test_a_run_at_work_is_refused(checkout):
    with (checkout / ".align/locks/checkout").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("run 'demo'")
        lock.flush()
        done = make_clean(checkout)
    assert done.returncode != 0
    assert "nothing is removed: run 'demo' is at work and holds .align/locks/checkout: wait for it" in done.stderr
    assert (checkout / "runtime/file").exists()


def test_a_damaged_list_of_services_is_refused(checkout):
    (checkout / ".align/services.json").write_text('{"prefect"')
    assert "services.json cannot be read: `make down`, then delete it" in make_clean(checkout).stderr
    assert (checkout / "runtime/file").exists()


def test_a_link_is_removed_and_what_it_leads_to_stays(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").touch()
    for path in ("runtime", ".align/store"):
        subprocess.run(["rm", "-r", path], cwd=checkout, check=True)
        (checkout / path).symlink_to(elsewhere)
    assert make_clean(checkout).returncode == 0
    assert (elsewhere / "file").exists() and not (checkout / "runtime").is_symlink()
