"""docs/operations.md: space is freed, a backup is made, the disk is lost, and everything is back in the same place."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from unittest import mock

import pytest

from align.config.params import write_params
from align.release.registration.register import keep_in_git
from align.services.git import git
from align.services.tracking.registry import CHAMPION
from align.services.tracking.tracker import Tracker
from flows.checkout.run_branch import record
from tests.support import ROOT, answers, wait_until
from tests.support.dvc_projects import environment, make_repository, shell
from tests.support.journeys import log_run, travel
from tests.support.killing import kill_family
from tests.support.mlflow_server import free_port
from tests.support.params import PARAMS_FILE

#: Two stages in the shell, and a source of each run that only it has.
DVC_YAML = """\
stages:
  ingest:
    cmd: mkdir -p data/raw && echo raw ${ingest.shard_size} > data/raw/table && echo same > data/raw/same
    params: [ingest.shard_size]
    outs: [data/raw]
  package:
    cmd: mkdir -p models/packaged && cat data/raw/table > models/packaged/weights
    deps: [data/raw]
    outs: [models/packaged]
"""
NAMES = ("registered", "old", "demo")
LONG_AGO_S = 100 * 24 * 3600


def three_runs(root):
    """A project with branches run/NAME, each a year younger. The first one's model is the champion."""
    make_repository(root, {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS_FILE.read_text()}, "")
    for number, name in enumerate(NAMES):
        write_params(root / "params.yaml", {"ingest.shard_size": number + 1})
        shell(root, "dvc repro --quiet", {})
        dates = {f"GIT_{who}_DATE": f"@{number * 31_536_000} +0000" for who in ("COMMITTER", "AUTHOR")}
        with mock.patch.dict(os.environ, dates):
            record(root, name, f"run {name}")
    git(root, "checkout", "--quiet", "params.yaml")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # MLflow's client remembers addresses
        pool.submit(_log, root).result()


def _log(root):
    tracker = Tracker(f"sqlite:///{root}/mlflow.db")
    for name in NAMES:
        commit = git(root, "rev-parse", f"run/{name}")
        run_id = tracker.start_run("align", name)
        tracker.set_tags(run_id, {"align.git_revision": commit})
        tracker.log_folder(run_id, root / "models/packaged", "model")
        tracker.end_run(run_id)
        if name == "registered":
            version = tracker.registry.create_version("align", run_id, "model", {"align.git_revision": commit})
            tracker.registry.set_alias(version, CHAMPION)
            keep_in_git(root, version, commit, "")
        if name == "old":
            tracker._client.delete_run(run_id)
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET deleted_time = 0 WHERE name = 'old'")


def objects(place, text):
    """The files of a cache or a remote of DVC with this text."""
    return [path for path in (place / "files").rglob("*") if path.is_file() and path.read_text() == text]


def of_runs(project):
    """Checks what was freed; returns what checks a restored checkout."""
    assert git(project, "branch", "--format=%(refname:short)").split() == ["main", "run/demo"]
    for place in (project / ".dvc/cache", project / ".align/remote"):
        assert all(objects(place, text) for text in ("raw 1\n", "raw 3\n", "same\n")) and not objects(place, "raw 2\n")
    assert [path.name for path in (project / "checkpoints").iterdir()] == ["young"]
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        assert database.execute("SELECT name FROM runs ORDER BY 1").fetchall() == [("demo",), ("registered",)]
    assert len(list((project / "mlartifacts/align").glob("*/artifacts/model/weights"))) == 2

    def restored(root):
        assert (root / "models/packaged/weights").read_text() == "raw 3\n"
        listed = {run["name"]: run["state"] for run in json.loads(shell(root, "align runs --json", {}))["runs"]}
        assert listed == {"demo": "finished", "registered": "finished"}
        shell(root, "git show align/align/v1:dvc.lock > dvc.lock && dvc checkout --quiet", {})
        assert (root / "models/packaged/weights").read_text() == "raw 1\n"
        [damaged], cache = objects(root.parent / "another disk/dvc", "raw 1\n"), root / ".dvc/cache"
        damaged.chmod(0o644)
        damaged.write_text("RAW 1\n")
        objects(cache, "raw 1\n")[0].unlink()
        shell(root, "dvc fetch --quiet --remote backup --all-branches --all-tags", {})
        assert objects(cache, "RAW 1\n") == []

    return restored


def of_a_project(project):
    """The same of a project whose every stage has run."""

    def restored(root):
        assert re.findall("Running stage '(.*)'", shell(root, "dvc repro", {"PYTHONPATH": str(ROOT)})) == ["code"]
        assert '"demo"' in shell(root, "align runs --json", {})
        assert "version 1" in shell(root, "align trace align@champion", {})
        assert served(root)["served"]["version"] == 1

    return restored


def served(root):
    """What `/health` of `align serve` says once it answers."""
    claim, port = free_port()
    command = ["align", "serve", "--port", str(port)]
    with (root / "log").open("wb") as log, closing(claim):
        process = subprocess.Popen(
            command, cwd=root, env=environment(root, {"PYTHONPATH": str(ROOT)}), stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}/health?ready=true"
            wait_until(lambda: answers(url), alive=lambda: process.poll() is None, says=(root / "log").read_text)
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)
        finally:
            kill_family(process.pid)
            process.wait()


@pytest.mark.journeys
@pytest.mark.parametrize("kind", ["runs", "project"])
def test_what_is_left_after_a_clean_up_is_back_after_the_disk_was_lost(kind, folder, request):
    project = folder / "here"
    if kind == "runs":
        three_runs(project)
    else:
        shutil.copytree(request.getfixturevalue("finished_project").parent, folder, symlinks=True, dirs_exist_ok=True)
        (folder / "mine").rename(project)
        log_run(project, "demo")
        shell(project, "align register && align promote", {"PYTHONPATH": str(ROOT)})
    shell(project, "dvc remote modify --local local url .align/remote && dvc push --quiet --all-branches", {})
    for name, age_s in (("young", 0), ("old", LONG_AGO_S)):
        (project / "checkpoints" / name).mkdir(parents=True)
        os.utime(project / "checkpoints" / name, (time.time() - age_s,) * 2)
    travel(project, "operations", "clean-up", {"FROM": "2"})
    check = of_runs(project) if kind == "runs" else of_a_project(project)
    backup = {"BACKUP": str(folder / "another disk")}
    for _ in range(2):  # the second one copies over what the first one copied
        travel(project, "operations", "back-up", backup)
    assert (folder / "another disk").stat().st_mode & 0o77 == 0
    shutil.rmtree(project)
    git(folder, "clone", "--quiet", f"{folder}/another disk/git", str(project))
    travel(project, "operations", "restore", backup)
    check(project)
