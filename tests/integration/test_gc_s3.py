"""`align gc` over a real S3 server: DVC's remote, the store of tars and the copies of checkpoints, each in a bucket."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from align.git import git
from align.services.tracking.database import settle
from flows.retention.live import needs_everything
from tests.support import ROOT, old_runs
from tests.support.dvc_projects import aws_variables, environment, file_bytes, shell
from tests.support.s3_server import KEY, SECRET, S3Server, serve
from tests.support.warm import commands

pytestmark = pytest.mark.full  # minutes

#: As `align gc` is told of the three places.
STORES = ("retention.remotes=[s3]", "retention.stores=true", "retention.num_runs=1", "store.num_retries=0")
#: Does the removal in this process, and ends it, or the server, before the removal of an object of some kind.
AFTER = """
import os, sys
from align.services import store_client
from flows import remote_objects
from flows.retention import __main__ as program, cache
kind, left, pid = sys.argv.pop(1), [int(sys.argv.pop(1))], int(sys.argv.pop(1))
def counted(remove):
    def count(*arguments):
        left[0] -= 1
        if left[0] == -1:
            if not pid: os._exit(9)
            os.kill(pid, 9)
        return remove(*arguments)
    return count
if kind == "dvc":
    from dvc_s3 import S3FileSystem
    S3FileSystem.remove = counted(S3FileSystem.remove)
else:
    store_client.client = lambda config, real=store_client.client: Client(real(config))
class Client:
    def __init__(self, real): self.real = real
    def __getattr__(self, name):
        found = getattr(self.real, name)
        return counted_delete(found) if name == "delete_object" else found
calls = counted(lambda call, arguments: call(**arguments))
def counted_delete(found):
    return lambda **arguments: calls(found, arguments)
sys.exit(program.main())
"""


@pytest.fixture(scope="module", name="server")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        yield running


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_runs.make(tmp_path_factory.mktemp("old") / "project")


class Project:
    """A copy of the old runs, all of them pushed, with buckets of its own."""

    def __init__(self, root: Path, server: S3Server, name: str) -> None:
        self.root, self.server = root, server
        self.aws = aws_variables(server) | {"AWS_MAX_ATTEMPTS": "1"}
        self.buckets = {kind: server.make_bucket(f"{name}-{kind}") for kind in ("dvc", "tars", "checkpoints")}
        self.use_remote(root)
        shell(root, "dvc push --quiet --all-branches && dvc push --quiet --run-cache", self.aws)
        self.put("tars", {self.tar(number): b"tar!" for number in range(1, 7)})  # nothing here ever named the last
        self.put("checkpoints", {self.checkpoint(number): b"step" for number in range(1, 7)})

    def use_remote(self, root: Path) -> None:
        remote = f"dvc remote add --local --default s3 s3://{self.buckets['dvc']}/dvc"
        shell(root, f"{remote} && dvc remote modify --local s3 endpointurl {self.server.url}", self.aws)

    @staticmethod
    def tar(number: int) -> str:
        return f"objects/00/{number:064d}.tar"

    @staticmethod
    def checkpoint(number: int) -> str:
        return f"runs/{number:016x}-00000000/step-00000010.pt"

    def put(self, kind: str, objects: dict[str, bytes]) -> None:
        client = boto3.client(
            "s3", endpoint_url=self.server.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )  # fmt: skip
        for key, data in objects.items():
            client.put_object(Bucket=self.buckets[kind], Key=key, Body=data)

    @property
    def arguments(self) -> list[str]:
        tars, checkpoints = self.buckets["tars"], self.buckets["checkpoints"]
        places = (f"store.objects=s3://{tars}/objects", f"store.checkpoints=s3://{checkpoints}/runs")
        return [word for value in (*STORES, *places) for word in ("--set", value)]

    def gc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "align.cli", "gc", *self.arguments, *arguments)

    def python(self, *command: str) -> subprocess.CompletedProcess[str]:
        env = environment(self.root, self.aws) | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [str(commands() / "python"), *command], cwd=self.root, env=env, capture_output=True, text=True, check=False
        )

    def stored(self) -> dict[str, set[str]]:
        return {kind: set(self.server.keys(bucket)) for kind, bucket in self.buckets.items()}

    def numbers(self) -> tuple[list[int], list[int]]:
        """Those of the tars and of the checkpoints that are there."""
        stored = self.stored()
        tars = [number for number in range(1, 7) if self.tar(number) in stored["tars"]]
        return tars, [number for number in range(1, 7) if self.checkpoint(number) in stored["checkpoints"]]

    def model(self, revision: str) -> str:
        """The model of a revision, in a clone without a cache, from the server."""
        clone = self.root.with_name("clone")
        git(self.root.parent, "clone", "--quiet", "--no-checkout", str(self.root), str(clone))
        git(clone, "checkout", "--quiet", "--detach", git(self.root, "rev-parse", revision))
        try:
            self.use_remote(clone)
            shell(clone, "dvc pull --quiet", self.aws)
            return (clone / "models/packaged/weights").read_text()
        finally:
            shutil.rmtree(clone)


@pytest.fixture(name="project")
def _project(made: Path, server: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    root = tmp_path / "project"
    shutil.copytree(made, root, symlinks=True)
    settle(root / "mlflow.db")
    return Project(root, server, f"b{abs(hash(request.node.name)) % 10**9}")


def everything(project: Project) -> dict[str, object]:
    passing = (".git/worktrees", ".dvc/tmp", ".align/prefect", ".align/locks", ".align/login")
    here = {path: data for path, data in file_bytes(project.root).items() if not path.startswith(passing)}
    return {"here": here, "there": project.stored()}


def test_what_is_needed_stays_and_what_others_pushed(project: Project) -> None:
    """A registered version (1), a tag (3), a policy (2), the newest run (5); only 4 goes."""
    root = project.root
    git(root, "tag", "keep-me", "run/3")
    old_runs.decide(root, 2)
    other = root.with_name("other")
    git(root.parent, "clone", "--quiet", str(root), str(other))
    project.use_remote(other)
    (other / "theirs").write_text("pushed by another clone")
    shell(other, "dvc add --quiet theirs && dvc push --quiet theirs", project.aws)
    before = everything(project)

    done = project.gc()
    assert done.returncode == 0, done.stderr
    assert everything(project) == before  # a list, and nothing else
    listed = {line[:40].strip(): line[40:].split() for line in done.stdout.splitlines() if line and line[0] != " "}
    assert listed["tars of the object store"] == ["1", "4"]
    assert int(listed["objects of DVC's remote 's3'"][0]) > 3

    done = project.gc("--yes")
    assert done.returncode == 0, done.stderr
    assert project.numbers() == ([1, 2, 3, 5, 6], [6])  # checkpoints: of finished trainings; 6 is not of this machine
    for revision, number in (("run/1", 1), ("run/2", 2), ("keep-me", 3), ("run/5", 5)):
        assert project.model(revision) == f"raw {number}\n1\n"
    (other / "theirs").unlink()
    shutil.rmtree(other / ".dvc/cache")
    shell(other, "dvc pull --quiet theirs", project.aws)
    gone = {key for key in before["there"]["dvc"] if key not in project.stored()["dvc"]}  # type: ignore[index]  # a dict of dicts, or None
    assert any("/runs/" in key for key in gone) and any("/files/" in key for key in gone)
    done = project.gc("--yes")
    assert (done.returncode, done.stdout) == (0, "nothing to remove\n"), done.stdout + done.stderr


def test_beside_a_run_at_work_the_servers_keep_what_it_may_need(project: Project) -> None:
    (old_runs.checkpoints(project.root, 2) / "speed.json").unlink()  # not finished
    before = project.stored()
    lock = project.root / ".align/locks/checkout"
    with needs_everything(project.root, print):
        lock.touch()
        done = project.gc("--yes")
    assert done.returncode == 0, done.stderr
    assert project.stored()["dvc"] == before["dvc"] and project.stored()["tars"] == before["tars"]
    assert project.numbers()[1] == [2, 6]


@pytest.mark.parametrize("place", ["retention.remotes=[s3]", "store.objects", "store.checkpoints"])
def test_a_server_that_is_down_is_one_line_and_loses_nothing(project: Project, place: str) -> None:
    """Each place alone, so that no other one stops the removal first."""
    values = {"retention.remotes": "[]", "store.objects": "null", "store.checkpoints": "null"}
    key, _, value = place.partition("=")
    values[key] = value or next(word for word in project.arguments if word.startswith(f"{place}=")).partition("=")[2]
    before = everything(project)
    ours = file_bytes(project.root / "checkpoints")
    project.server.kill()
    try:
        sets = [word for item in values.items() for word in ("--set", "=".join(item))]
        done = project.gc("--yes", *sets)
    finally:
        project.server.start()
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("align: error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert file_bytes(project.root / "checkpoints") == ours
    assert everything(project) == before
    assert SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize("kind", ["dvc", "tar"])
@pytest.mark.parametrize("dies", ["it", "server"])
def test_ended_in_the_middle_it_continues(project: Project, made: Path, kind: str, dies: str) -> None:
    """The whole choice is gone after the second call, though branches and entries that named it went in the first."""
    process = project.server._process
    assert process
    before = project.stored()
    done = project.python(
        "-c", AFTER, kind, "2", str(process.pid if dies == "server" else 0), "--yes", *project.arguments
    )
    if dies == "server":
        process.wait()
        project.server.kill()
        project.server.start()
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("align: error: ")]) == 1
    else:
        assert done.returncode == 9, done.stdout + done.stderr
    assert project.stored() != before
    done = project.gc("--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.numbers() == ([1, 5, 6], [6])
    assert project.model("run/1") == "raw 1\n1\n" and project.model("run/5") == "raw 5\n1\n"
    left = {Path(key).parent.name + Path(key).name for key in project.stored()["dvc"] if "/files/" in key}
    here = {path.parent.name + path.name for path in (project.root / ".dvc/cache/files/md5").glob("*/*")}
    assert left <= here
    assert not (project.root / ".align/gc.json").exists()
    assert project.gc("--yes").stdout == "nothing to remove\n"


def test_a_bucket_that_is_not_there_stops_it_before_anything_is_removed(project: Project) -> None:
    before = everything(project)
    for value in (
        "store.objects=s3://no-such-bucket/objects",
        "store.objects=/no/such/disk/objects",
        "store.checkpoints=s3://no-such-bucket/runs",
    ):
        done = project.gc("--yes", "--set", value)
        assert done.returncode == 1 and "align: error: " in done.stderr, (value, done.stdout, done.stderr)
    shell(project.root, "dvc remote modify --local s3 url s3://no-such-bucket/dvc", project.aws)
    done = project.gc("--yes")
    assert done.returncode == 1 and "align: error: DVC remote 's3': " in done.stderr, done.stdout + done.stderr
    shell(project.root, f"dvc remote modify --local s3 url s3://{project.buckets['dvc']}/dvc", project.aws)
    assert everything(project) == before
