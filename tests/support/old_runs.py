"""A project with five runs that are long past, for tests of what `align gc` keeps. The stages are lines of shell."""

import json
import os
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

from align.config.params_file import write_params
from align.git import git
from align.services.tracking.registry import CANDIDATE
from align.services.tracking.tracker import Tracker
from flows import run_branch
from tests.support import ROOT
from tests.support.dvc_projects import environment, make_repository, shell
from tests.support.params import PARAMS_FILE
from tests.support.warm import commands

DVC_YAML = """\
stages:
  ingest:
    cmd: >-
      mkdir -p data/raw reports/quality && echo raw ${ingest.shard_size} > data/raw/table && echo same > data/raw/same
      && echo '{"data": "data-${ingest.shard_size}"}' > reports/quality/verdict.json
      && printf '{"shards": [{"name": "0", "tar_sha256": "%064d", "tar_bytes": 4}]}' ${ingest.shard_size} > data/raw/manifest.json
    params: [ingest.shard_size]
    outs: [data/raw, reports/quality]
  finetune:
    cmd: mkdir -p models/finetuned && cat data/raw/table > models/finetuned/weights && echo ${finetune.seed} >> models/finetuned/weights
    deps: [data/raw]
    params: [finetune.seed]
    outs: [models/finetuned]
  package:
    cmd: >-
      mkdir -p models/packaged reports/package && cp models/finetuned/weights models/packaged/weights
      && echo '{"digest": "model-${ingest.shard_size}"}' > reports/package/report.json
    deps: [models/finetuned]
    params: [ingest.shard_size]
    outs: [models/packaged, reports/package]
"""  # noqa: E501
#: The tracker's files lie beside its database; a model that can be loaded is not needed here.
EXPERIMENT = "align"
LONG_AGO_S = 100 * 24 * 3600


def make(root: Path) -> Path:
    """Runs 1 to 5, each with data, model, branch run/N, a run in MLflow and a folder of checkpoints, 100 days old.

    The checkout has the result of run 5. Run 1's model is registered.
    """
    files = {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS_FILE.read_text()}
    make_repository(root, files, "")
    for number in range(1, 6):
        run(root, number)
    git(root, "checkout", "--quiet", "params.yaml")
    age(root)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # MLflow's client remembers addresses
        pool.submit(_log, root).result()
    return root


def run(root: Path, number: int) -> None:
    """What `align run --name NUMBER --set ingest.shard_size=NUMBER` leaves in the checkout."""
    write_params(root / "params.yaml", {"ingest.shard_size": number})
    shell(root, "dvc repro --quiet", {})
    dates = {f"GIT_{who}_DATE": f"@{int(time.time()) - LONG_AGO_S + number} +0000" for who in ("COMMITTER", "AUTHOR")}
    with mock.patch.dict(os.environ, dates):
        run_branch.record(root, str(number), f"run {number}")
    folder = checkpoints(root, number)
    folder.mkdir(parents=True)
    for name in ("lock", "step-00000010.pt", "speed.json"):
        (folder / name).write_text("1")


def checkpoints(root: Path, number: int) -> Path:
    return root / "checkpoints" / f"{number:016x}-00000000"


def age(root: Path, days: float = 100) -> None:
    """Makes everything that lies there as old as that."""
    then = time.time() - days * 24 * 3600
    for folder in (".dvc/cache", "checkpoints", ".align"):
        for path in (root / folder).rglob("*"):
            os.utime(path, (then, then), follow_symlinks=False)


def _log(root: Path) -> None:
    tracker = Tracker(f"sqlite:///{root}/mlflow.db")
    then = int((time.time() - LONG_AGO_S) * 1000)
    for number in range(1, 6):
        commit = git(root, "rev-parse", f"run/{number}")
        run_id = tracker.start_run(EXPERIMENT, str(number))
        tracker.set_tags(run_id, {"align.git_revision": commit})
        (root / "models/packaged").mkdir(parents=True, exist_ok=True)
        tracker.log_folder(run_id, root / "models/packaged", "model")
        if number == 1:
            tags = {"align.git_revision": commit, "align.model_digest": "model-1"}
            tracker.registry.set_alias(tracker.registry.create_version("align", run_id, "model", tags), CANDIDATE)
        tracker._client.set_terminated(run_id, "FINISHED", then)


def decide(root: Path, number: int) -> None:
    """A person makes the data of a run the reference for drift."""
    folder = root / "data/policy"
    folder.mkdir(parents=True, exist_ok=True)
    reference = {"data": f"data-{number}", "keep_rate": 0.5, "distributions": {}, "by": "a person", "on": "2026-01-31"}
    (folder / "reference.json").write_text(json.dumps({"schema_version": 1, "reference": reference}))


def gc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`align gc` with the newest run kept, unless the arguments say otherwise."""
    command = [str(commands() / "python"), "-m", "align.cli", "gc", "--set", "retention.num_runs=1", *arguments]
    env = environment(root, {}) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


def branches(root: Path) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads/run/").splitlines()


def weights(root: Path, revision: str, into: Path) -> str:
    """The model of a revision, checked out by git and DVC as a person does, in a worktree that shares the cache."""
    git(root, "worktree", "add", "--quiet", "--detach", str(into), revision)
    try:
        (into / ".dvc/config.local").write_text(f"[cache]\n    dir = {root}/.dvc/cache\n")
        shell(into, "dvc checkout --quiet", {})
        return (into / "models/packaged/weights").read_text()
    finally:
        git(root, "worktree", "remove", "--force", str(into))
