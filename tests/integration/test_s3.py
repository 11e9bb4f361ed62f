"""The README's S3 recipe, its own lines, between two checkouts and a real S3 server."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from flows.git_repository import git
from flows.run_branch import record
from tests.support import ROOT
from tests.support.s3_server import KEY, SECRET, S3Server, serve

README = ROOT / "README.md"
ENV_EXAMPLE = ROOT / "infra" / "env.example"

DVC_YAML = """\
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs: [data]
"""

#: The stage leaves a line outside of every checkout each time it runs.
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


def variables(server: S3Server) -> dict[str, str]:
    """The variables that infra/env.example names for S3, filled in."""
    values = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
    }
    return {name: values[name] for name in re.findall(r"^#?(AWS_\w+)=", ENV_EXAMPLE.read_text(), re.M)}


def attempt(root: Path, command: str, aws: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A line typed in a checkout of a machine that knows of S3 what is in `aws`."""
    return subprocess.run(
        ["sh", "-c", command], cwd=root, env=environment(root, aws), capture_output=True, text=True, timeout=90
    )


def shell(root: Path, command: str, aws: Mapping[str, str]) -> str:
    """stdout of a line that has to work."""
    done = attempt(root, command, aws)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def environment(root: Path, aws: Mapping[str, str]) -> dict[str, str]:
    """Neither the user's settings of AWS and DVC, nor what DVC remembers of remotes in another checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
    machine = root.with_name(f"{root.name}.machine")
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(machine / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(machine / "system"),
        "DVC_SITE_CACHE_DIR": str(machine / "site"),
        "AWS_CONFIG_FILE": str(machine / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(machine / "none"),
        "TEST_RUNS": str(root.with_name("runs")),
    }
    return env | dict(aws)


def follow(text: Path, root: Path, bucket: str, aws: Mapping[str, str], url: str) -> None:
    """Types the lines `dvc remote ...` of a text of this repository, with its placeholders filled in."""
    lines = re.findall(r"^(?:#  |   ) (dvc remote .*?)(?: {2,}[#(].*)?$", text.read_text(), re.M)
    assert [line.split()[2] for line in lines] == ["add", "modify"], lines
    for line in lines:
        shell(root, re.sub(r"\bBUCKET\b", bucket, re.sub(r"\bURL\b", url, line)), aws)


def make_project(root: Path, count: int, aws: Mapping[str, str]) -> Path:
    """A repository with this one's settings of DVC and one stage, which has run."""
    git(root.parent, "init", "--quiet", "--initial-branch", "main", str(root))
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    with (root / ".gitignore").open("a") as ignored:
        ignored.write("/data/\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "make.py").write_text(MAKE.format(count=count))
    git(root, "add", "--all")
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "project")
    shell(root, "dvc repro", aws)
    return root


def clone(project: Path, name: str, branch: str) -> Path:
    """As on another machine: without the cache."""
    root = project.with_name(name)
    git(project.parent, "clone", "--quiet", "--branch", branch, str(project), str(root))
    assert not (root / ".dvc/cache").exists()
    return root


def files(folder: Path) -> dict[str, bytes]:
    """Path below the folder -> bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def runs(project: Path) -> int:
    """How often the stage has run, in whatever checkout."""
    return len(project.with_name("runs").read_text().splitlines())


def assert_no_secrets(root: Path) -> None:
    """Neither in any file of the checkout, nor in its history; and the settings of S3 are not git's."""
    leaks = [name for name, data in files(root).items() if KEY.encode() in data or SECRET.encode() in data]
    assert not leaks
    history = git(root, "log", "--all", "--patch")
    assert "make.py" in history
    assert KEY not in history
    assert SECRET not in history
    assert "s3://" in (root / ".dvc/config.local").read_text()
    assert "s3://" not in history
    assert git(root, "status", "--porcelain") in ("", "?? dvc.lock")


def test_a_clone_pulls_the_bytes_that_were_pushed(server: S3Server, tmp_path: Path) -> None:
    aws = variables(server)
    bucket = server.make_bucket("bytes")
    project = make_project(tmp_path / "project", 5, aws)
    follow(ENV_EXAMPLE, project, bucket, aws, server.url)
    shell(project, "dvc push", aws)
    cache = files(project / ".dvc/cache/files")
    assert len(cache) == 6  # five files and their list
    assert server.objects(bucket) == {f"dvc/files/{name}": data for name, data in cache.items()}

    record(project, "demo", "a run")
    there = clone(project, "clone", "run/demo")
    del aws["AWS_ENDPOINT_URL"]  # `endpointurl` alone has to lead to the server
    follow(README, there, bucket, aws, server.url)
    shell(there, "dvc pull", aws)
    assert files(there / "data") == files(project / "data")
    assert runs(project) == 1
    assert_no_secrets(project)
    assert_no_secrets(there)


def test_a_stage_that_ran_elsewhere_does_not_run_again(server: S3Server, tmp_path: Path) -> None:
    aws = variables(server)
    bucket = server.make_bucket("runs")
    project = make_project(tmp_path / "project", 5, aws)
    follow(README, project, bucket, aws, server.url)
    shell(project, "dvc push --run-cache", aws)
    assert any(key.startswith("dvc/runs/") for key in server.keys(bucket))
    record(project, "demo", "a run")

    # With the run's lock the bytes come along; without it, on main, only the run cache knows that they fit.
    there = clone(project, "clone", "run/demo")
    follow(README, there, bucket, aws, server.url)
    shell(there, "dvc fetch --run-cache", aws)
    git(there, "switch", "--quiet", "main")
    assert not (there / "dvc.lock").exists()
    assert "Stage 'make' is cached" in shell(there, "dvc repro", aws)

    on_main = clone(project, "main", "main")
    follow(README, on_main, bucket, aws, server.url)
    assert "Stage 'make' is cached" in shell(on_main, "dvc repro --pull", aws)
    for root in (there, on_main):
        assert files(root / "data") == files(project / "data")
    assert runs(project) == 1


def test_wrong_credentials_push_nothing(server: S3Server, tmp_path: Path) -> None:
    aws = variables(server)
    bucket = server.make_bucket("refused")
    project = make_project(tmp_path / "project", 5, aws)
    follow(ENV_EXAMPLE, project, bucket, aws, server.url)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        refused = attempt(project, "dvc push", aws | {name: "wrong"})
        assert refused.returncode != 0
        assert "403" in refused.stderr
        assert server.keys(bucket) == []
    shell(project, "dvc push", aws)  # nothing but the credentials stood in the way
    assert len(server.keys(bucket)) == 6


def test_a_push_outlives_the_server(tmp_path: Path) -> None:
    with serve(tmp_path / "server") as server:
        aws = variables(server)
        bucket = server.make_bucket("lost")
        project = make_project(tmp_path / "project", 600, aws)
        follow(README, project, bucket, aws, server.url)
        cache = files(project / ".dvc/cache/files")
        assert len(cache) == 601

        # One file after the other, so that the server goes amid them; and one attempt each, since by default each file
        # has five with up to 15 seconds between them.
        env = environment(project, aws | {"AWS_MAX_ATTEMPTS": "1"})
        with (tmp_path / "push.log").open("wb") as log:
            push = subprocess.Popen(
                ["dvc", "push", "--jobs", "1"], cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            with closing(server._client()) as client:  # one for all questions: a new one each takes as long as a push
                while push.poll() is None and "Contents" not in client.list_objects_v2(Bucket=bucket, MaxKeys=1):
                    time.sleep(0.01)
            server.kill()
            assert push.wait(timeout=60) != 0, (tmp_path / "push.log").read_text()
        finally:
            push.kill()
            push.wait()
        assert "failed to push" in (tmp_path / "push.log").read_text()
        assert attempt(project, "dvc push", aws).returncode != 0  # as in the README, within the timeout of `attempt`
        assert files(project / ".dvc/cache/files") == cache

        server.start()
        expected = {f"dvc/files/{name}": data for name, data in cache.items()}
        arrived = server.objects(bucket)
        assert arrived.items() < expected.items()
        assert arrived
        assert not any(key.endswith(".dir") for key in arrived)  # a list never precedes its files
        shell(project, "dvc push", aws)
        assert server.objects(bucket) == expected
