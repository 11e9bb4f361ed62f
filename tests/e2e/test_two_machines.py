"""Training on a second machine, on the sample: it is lost in mid-stage, a third takes over, and the bytes are the same.

The machines are clones that share no folder: git's remote, an S3 server and Prefect's server are between them.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from align.config.params import write_params
from align.services.git import git
from tests.support import small_checkout, wait_until
from tests.support.dvc_projects import aws_variables, commit_all
from tests.support.local_stack import ENDS, Stack
from tests.support.remote_worker import Machine, share, use_remote
from tests.support.s3_server import SECRET, serve

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # a second machine begins the training again


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3") / "data") as server:
        server.make_bucket("team")
        yield server


@pytest.fixture(scope="module")
def head(s3, tmp_path_factory):
    """The machine that people click at: Prefect's server, and a worker for whole runs."""
    root = small_checkout.write(tmp_path_factory.mktemp("head machine") / "checkout")
    values = {
        "store.checkpoints": "s3://team/checkpoints", "cluster.patience_s": 20, "pretrain.num_steps": 400,
        "pretrain.checkpoint_every_steps": 40, "pretrain.validate_every_steps": 400,
    }  # fmt: skip
    write_params(root / "params.yaml", values)
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


def test_training_moves_from_machine_to_machine_to_the_same_bytes(head, s3, tmp_path):
    second, third = machine(head, tmp_path / "second"), machine(head, tmp_path / "third machine")
    second.work("gpu")
    try:
        second.wait_until_it_works()
        values = {"cluster.pools": {"pretrain": "gpu"}}
        run = head.start({"name": "far", "to_stage": "pretrain", "overrides": values})
        wait_until(lambda: any(key.startswith("checkpoints/") for key in s3.keys("team")), 600)
        second.lose()
        third.work("gpu")
        assert head.wait_for(run, *ENDS, timeout_s=600) == "COMPLETED", head.logs(run)
    finally:
        second.close()
        third.close()
    assert "pretrain: resuming from step" not in second.log()
    assert "pretrain: resuming from step" in third.log()
    assert not (head.root / "checkpoints").exists() or not list((head.root / "checkpoints").iterdir())

    # the same on one machine, which takes the data and nothing else
    alone = machine(head, tmp_path / "alone")
    git(alone.root, "fetch", "--quiet", str(head.root), "run/far")
    git(alone.root, "switch", "--quiet", "--detach", "FETCH_HEAD")
    expected = outs(alone.root)
    write_params(alone.root / "params.yaml", {"store.checkpoints": None})
    for command in (
        ("pull", "fit_tokenizer", "shard", "validate_shards"),
        ("repro", "--single-item", "--no-run-cache", "--force", "code", "pretrain"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=alone.root, env=alone.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'pretrain'" in done.stdout
    assert outs(alone.root) == expected

    # passwords travelled by the environment alone
    database = head.root / ".align/prefect/prefect.db"
    for file in (database, database.with_name("prefect.db-wal")):
        assert not file.exists() or SECRET.encode() not in file.read_bytes()
    assert SECRET not in second.log() + third.log()


def outs(root):
    """Path -> hash, of what training writes."""
    lock = YAML(typ="safe").load((root / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for out in lock["stages"]["pretrain"]["outs"]}
