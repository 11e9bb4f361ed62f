"""What has to be there before training goes to another machine, and what it reads."""

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from align.config.params import write_params
from align.errors import DataError
from align.services.git import git, resolve
from flows import elsewhere
from flows.dag import Selection, Stage
from flows.run.context import RunContext
from tests.support import ROOT, small_git
from tests.support.params import PARAMS_FILE

SHARD = Stage("shard", "", "data", (), ("data/shards",), (), "reports/shard")
PRETRAIN = Stage("pretrain", "", "training", ("data/shards", "words"), ("models/pretrained",), ("shard",), "reports/p")
FINETUNE = Stage(
    "finetune", "", "training", ("data/shards/train", "models/pretrained", "s3://bucket/key", "mine"),
    ("models/finetuned",), ("shard", "pretrain"), "reports/f",
)  # fmt: skip
EVALUATE = Stage("evaluate", "", "training", ("models/finetuned",), ("reports/e",), ("finetune",), "reports/e")
DAG = (SHARD, PRETRAIN, FINETUNE, EVALUATE)


def deployed(name):
    if name != "part/gpu":
        raise ObjectNotFound(RuntimeError(name))


@pytest.fixture(name="run")
def _run(tmp_path, monkeypatch):
    """A run whose training goes to pool `gpu`, and can."""
    origin = small_git.write(tmp_path / "origin", {"words": "a"})
    root = small_git.write(tmp_path / "checkout", {"words": "a"})
    git(root, "remote", "add", "origin", str(origin))
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    use_remote(root, tmp_path / "shared")
    shutil.copy(PARAMS_FILE, root / "params.yaml")
    write_params(root / "params.yaml", {"cluster.training_pool": "gpu"})
    client = SimpleNamespace(read_deployment_by_name=deployed)
    monkeypatch.setattr(elsewhere, "get_client", lambda sync_client: nullcontext(client))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        names = frozenset(stage.name for stage in DAG)
        yield RunContext(root=root, checkout=root, chosen=Selection(DAG, DAG), stale=names)


def use_remote(root, url):
    (root / ".dvc/config.local").write_text(f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {url}\n")


def test_what_goes_is_stale_training(run):
    elsewhere.require_reachable(run)
    assert elsewhere.sent(run) == [PRETRAIN, FINETUNE]
    assert elsewhere.sent(run.model_copy(update={"stale": frozenset({"finetune", "evaluate"})})) == [FINETUNE]


def test_where_nothing_goes_nothing_is_asked(run):
    git(run.root, "remote", "remove", "origin")
    elsewhere.require_reachable(run.model_copy(update={"stale": frozenset({"evaluate"})}))
    write_params(run.root / "params.yaml", {"cluster.training_pool": None})
    here = RunContext(**dict(run))
    elsewhere.require_reachable(here)
    assert elsewhere.sent(here) == []


def test_only_what_dvc_keeps_is_pushed(run):
    """Not what training makes, what git has, or what lies in a bucket; `mine`, which nobody keeps, DVC will refuse."""
    commit = resolve(run.root, "HEAD")
    assert elsewhere._read(run, [PRETRAIN, FINETUNE], commit) == ["data/shards", "data/shards/train", "mine"]
    assert elsewhere._read(run, [FINETUNE], commit) == ["data/shards/train", "models/pretrained", "mine"]


def refused(run, message):
    with pytest.raises(DataError, match=message) as error:
        elsewhere.require_reachable(run)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_one_line(run):
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        refused(run, "told by Prefect's server: `make up`, or set PREFECT_API_URL")
    for elsewhere_too in ("s3://bucket/dvc", "../../shared"):
        use_remote(run.root, elsewhere_too)
        elsewhere.require_reachable(run)
    use_remote(run.root, run.root / ".align/remote")
    refused(run, "DVC's remote 'shared' is a folder of this checkout, which no other machine sees")
    (run.root / ".dvc/config.local").unlink()
    refused(run, "DVC's remote 'local' is a folder of this checkout")
    (run.root / ".dvc/config").write_text("")
    refused(run, "DVC has no default remote")
    git(run.root, "remote", "set-url", "origin", "/nowhere/at/all.git")
    refused(run, "gets the code from git's remote 'origin'")
    write_params(run.root / "params.yaml", {"cluster.training_pool": "tpu"})
    refused(RunContext(**dict(run)), "no worker was ever started for it: on its machine, make worker POOL=tpu")
