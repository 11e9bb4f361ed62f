"""The S3 recipe of docs/scale.md, its own lines, between two checkouts and a real S3 server."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from align.services.git import git
from flows.checkout.run_branch import record
from tests.support.dvc_projects import (
    ENV_EXAMPLE,
    RECIPE,
    add_remote,
    attempt,
    aws_variables,
    clone,
    environment,
    file_bytes,
    make_repository,
    num_runs,
    shell,
)
from tests.support.s3_server import KEY, SECRET, S3Server, serve

DVC_YAML = """\
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs: [data]
"""

#: The stage writes a line outside of every checkout each time it runs.
MAKE = """\
import os
from pathlib import Path
with open(os.environ["TEST_RUNS"], "a") as runs:
    print("ran", file=runs)
for number in range({count}):
    file = Path("data", str(number % 3), str(number))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(number.to_bytes(2, "big") * 20_000)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Tests that need an empty bucket make one of their own."""
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        yield running


def make_project(root: Path, count: int) -> Path:
    """A repository with one stage, which has run."""
    make_repository(root, {"dvc.yaml": DVC_YAML, "make.py": MAKE.format(count=count)}, ignored="/data/\n")
    shell(root, "dvc repro", {})
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with five files, and of the record of its runs."""
    return make_project(tmp_path_factory.mktemp("made") / "project", 5).parent


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "project"


def remote(bucket: str, server: S3Server) -> str:
    """The settings that the recipe's lines make."""
    lines = (
        "[core]",
        "    remote = s3",
        "['remote \"s3\"']",
        f"    url = s3://{bucket}/dvc",
        f"    endpointurl = {server.url}",
    )
    return "".join(f"{line}\n" for line in lines)


def use_remote(root: Path, bucket: str, server: S3Server) -> None:
    """As the recipe's lines, which `test_a_clone_pulls_the_bytes_that_were_pushed` types."""
    (root / ".dvc/config.local").write_text(remote(bucket, server))


def assert_no_secrets(root: Path) -> None:
    """No secret is in a file of the checkout or in its history, and git has no settings of S3."""
    leaks = [name for name, data in file_bytes(root).items() if KEY.encode() in data or SECRET.encode() in data]
    assert not leaks
    history = git(root, "log", "--all", "--patch")
    assert "make.py" in history
    assert KEY not in history
    assert SECRET not in history
    assert "s3://" in (root / ".dvc/config.local").read_text()
    assert "s3://" not in history
    assert git(root, "status", "--porcelain") in ("", "?? dvc.lock")


def test_a_clone_pulls_the_bytes_that_were_pushed(server: S3Server, project: Path) -> None:
    aws = aws_variables(server)
    bucket = server.make_bucket("bytes")
    add_remote(ENV_EXAMPLE, project, bucket, aws, server.url)
    shell(project, "dvc push", aws)
    cache = file_bytes(project / ".dvc/cache/files")
    assert len(cache) == 6  # five files and their list
    assert server.objects(bucket) == {f"dvc/files/{name}": data for name, data in cache.items()}

    record(project, "demo", "a run")
    cloned = clone(project, "clone", "run/demo")
    del aws["AWS_ENDPOINT_URL"]  # `endpointurl` alone has to lead to the server
    add_remote(RECIPE, cloned, bucket, aws, server.url)
    assert (cloned / ".dvc/config.local").read_text() == remote(bucket, server)
    shell(cloned, "dvc pull", aws)
    assert file_bytes(cloned / "data") == file_bytes(project / "data")
    assert num_runs(project) == 1
    assert_no_secrets(project)
    assert_no_secrets(cloned)


@pytest.mark.costs(3, "four commands of DVC, in three checkouts")
def test_a_stage_that_ran_elsewhere_does_not_run_again(server: S3Server, project: Path) -> None:
    aws = aws_variables(server)
    bucket = server.make_bucket("runs")
    use_remote(project, bucket, server)
    shell(project, "dvc push --run-cache", aws)
    assert any(key.startswith("dvc/runs/") for key in server.keys(bucket))
    record(project, "demo", "a run")

    # With the run's lock the bytes are fetched; without it, on main, only the run cache says that they fit.
    cloned = clone(project, "clone", "run/demo")
    use_remote(cloned, bucket, server)
    shell(cloned, "dvc fetch --run-cache", aws)
    git(cloned, "switch", "--quiet", "main")
    assert not (cloned / "dvc.lock").exists()
    assert "Stage 'make' is cached" in shell(cloned, "dvc repro", aws)

    on_main = clone(project, "main", "main")
    use_remote(on_main, bucket, server)
    assert "Stage 'make' is cached" in shell(on_main, "dvc repro --pull", aws)
    for root in (cloned, on_main):
        assert file_bytes(root / "data") == file_bytes(project / "data")
    assert num_runs(project) == 1


def test_wrong_credentials_push_nothing(server: S3Server, project: Path) -> None:
    aws = aws_variables(server)
    bucket = server.make_bucket("refused")
    use_remote(project, bucket, server)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        refused = attempt(project, "dvc push", aws | {name: "wrong"})
        assert refused.returncode != 0
        assert "403" in refused.stderr
        assert server.keys(bucket) == []
    shell(project, "dvc push", aws)  # only the credentials were wrong
    assert len(server.keys(bucket)) == 6


@pytest.mark.costs(6, "a real server is killed and started again in the middle of a push")
def test_a_push_outlives_the_server(tmp_path: Path) -> None:
    with serve(tmp_path / "server") as server:
        aws = aws_variables(server)
        bucket = server.make_bucket("lost")
        project = make_project(tmp_path / "project", 150)
        use_remote(project, bucket, server)
        cache = file_bytes(project / ".dvc/cache/files")
        assert len(cache) == 151

        # One file after another, so that the server is killed in between; and one attempt per file, not five with up
        # to 15 seconds between them.
        env = environment(project, aws | {"AWS_MAX_ATTEMPTS": "1"})
        with (tmp_path / "push.log").open("wb") as log:
            push = subprocess.Popen(
                ["dvc", "push", "--jobs", "1"], cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            with closing(server._client()) as client:  # one for all requests: each new one takes as long as a push
                while push.poll() is None and "Contents" not in client.list_objects_v2(Bucket=bucket, MaxKeys=1):
                    time.sleep(0.02)
            server.kill()
            assert push.wait(timeout=200) != 0, (tmp_path / "push.log").read_text()
        finally:
            push.kill()
            push.wait()
        assert "failed to push" in (tmp_path / "push.log").read_text()
        assert attempt(project, "dvc push", aws).returncode != 0  # as in the RECIPE, within the timeout of `attempt`
        assert file_bytes(project / ".dvc/cache/files") == cache

        server.start()
        expected = {f"dvc/files/{name}": data for name, data in cache.items()}
        arrived = server.objects(bucket)
        assert arrived.items() < expected.items()
        assert arrived
        assert not any(key.endswith(".dir") for key in arrived)  # a list never precedes its files
        shell(project, "dvc push", aws)
        assert server.objects(bucket) == expected
