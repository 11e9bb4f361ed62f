"""Data on one machine and training on a second, on the sample: the bytes are those of one machine, and nothing is done
twice.

The machines are clones that share no folder: git's remote, an S3 server and Prefect's server are between them.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from align.config.params import write_params
from align.services.git import git
from tests.support import small_checkout
from tests.support.dvc_projects import aws_variables, commit_all
from tests.support.local_stack import ENDS, Stack
from tests.support.remote_worker import Machine, share, use_remote
from tests.support.s3_server import SECRET, serve

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3") / "data") as server:
        server.make_bucket("team")
        yield server


@pytest.fixture(scope="module")
def here(s3, tmp_path_factory):
    """The machine that people click at: Prefect's server, and a worker for runs."""
    root = small_checkout.write(tmp_path_factory.mktemp("first machine") / "checkout")
    write_params(root / "params.yaml", {"store.checkpoints": "s3://team/checkpoints"})
    commit_all(root, "two machines")
    share(root, tmp_path_factory.mktemp("git") / "origin.git", "s3://team/dvc")
    stack = Stack(root)
    stack.env = {name: value for name, value in stack.env.items() if not name.startswith("MLFLOW_")} | aws_variables(s3)
    stack.env["PYTHONPATH"] = str(root)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
        stack.close()


def machine(stack, root):
    env = stack.env | {"PREFECT_API_URL": stack.api, "PREFECT_API_AUTH_STRING": stack.login, "PYTHONPATH": str(root)}
    new = Machine(root, Path(git(stack.root, "remote", "get-url", "origin")), env)
    use_remote(root, "s3://team/dvc")
    return new


def test_data_on_one_machine_and_training_on_a_second(here, s3, tmp_path):
    second = machine(here, tmp_path / "second")
    second.work("gpu")
    asked = {"name": "far", "to_stage": "finetune", "overrides": {"cluster.training_pool": "gpu"}}
    try:
        second.wait_until_it_works()
        run = here.start(asked)
        assert here.wait_for(run, *ENDS, timeout_s=900) == "COMPLETED", here.logs(run)
        again = here.start(asked)
        assert here.wait_for(again, *ENDS, timeout_s=300) == "COMPLETED", here.logs(again)
    finally:
        second.close()
    parts = [
        part["id"] for one in (run, again) for part in here.parts(one) if part["name"].startswith("training of far")
    ]
    there = "\n".join(line for part in parts for line in here.logs(part))
    said = "\n".join([*here.logs(run), *here.logs(again)])  # with those of the parts
    for stage, on_second in (("shard", 0), ("pretrain", 1), ("finetune", 1)):
        assert (said.count(f"Running stage '{stage}'"), there.count(f"Running stage '{stage}'")) == (1, on_second)
    assert any(key.startswith("checkpoints/") for key in s3.keys("team"))
    checkpoints = here.root / "checkpoints"
    assert not checkpoints.exists() or not list(checkpoints.iterdir())

    # the same on one machine, which takes the data and nothing else
    alone = machine(here, tmp_path / "alone")
    git(alone.root, "fetch", "--quiet", str(here.root), "run/far")
    git(alone.root, "switch", "--quiet", "--detach", "FETCH_HEAD")
    expected = outs(alone.root)
    write_params(alone.root / "params.yaml", {"store.checkpoints": None})
    for command in (
        ("pull", "data/tokenizer", "data/shards", "reports/quality_shards/verdict.json"),
        ("repro", "--single-item", "--no-run-cache", "--force", "code", "pretrain", "finetune"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=alone.root, env=alone.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'finetune'" in done.stdout
    assert outs(alone.root) == expected

    # passwords travelled by the environment alone
    database = here.root / ".align/prefect/prefect.db"
    for file in (database, database.with_name("prefect.db-wal")):
        assert not file.exists() or SECRET.encode() not in file.read_bytes()
    assert SECRET not in second.log()


def outs(root):
    """Path -> hash, of what training writes."""
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in ("pretrain", "finetune") for out in stages[stage]["outs"]}
