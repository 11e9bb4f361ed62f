from pathlib import Path

import pytest
from pydantic import ValidationError

from align.config import Params
from align.errors import ConfigError
from flows.dag import Stage
from flows.remote.order import Order, pools

STAGES = ["ingest", "pretrain", "index"]
DAG = [Stage(name, name, "data", (), (), (), name) for name in STAGES]


def of(chosen):
    return Params({"cluster": {"pools": chosen}}, Path("params.yaml"))


@pytest.mark.parametrize(("chosen", "expected"), [
    ({}, {}),
    ({"pretrain": "gpu"}, {"pretrain": "gpu"}),
    ({"default": "cpu"}, dict.fromkeys(STAGES, "cpu")),
    ({"default": "cpu", "pretrain": "gpu"}, {"ingest": "cpu", "pretrain": "gpu", "index": "cpu"}),
    ({"default": "cpu", "ingest": None}, {"pretrain": "cpu", "index": "cpu"}),
    ({"default": None, "pretrain": "gpu"}, {"pretrain": "gpu"}),
])  # fmt: skip
def test_pools(chosen, expected):
    assert pools(of(chosen), DAG) == expected


def test_an_older_revision_knows_no_pools():
    assert pools(Params({"cluster": {}}, Path("params.yaml")), DAG) == {}
    assert pools(Params({}, Path("params.yaml")), DAG) == {}


def test_an_unknown_stage_is_named():
    with pytest.raises(ConfigError, match=r"cluster\.pools: there is no stage 'indx'; did you mean index\?"):
        pools(of({"indx": "gpu"}), DAG)


@pytest.mark.parametrize("wrong", [
    {"stage": "--help"}, {"stage": "a b"}, {"commit": "HEAD"}, {"commit": "--upload-pack=x"}, {"more": 1},
    {"run": "a\nb"}, {"mlflow_run_id": "\0"},
])  # fmt: skip
def test_an_order_names_a_stage_and_a_commit(wrong):
    right = {"stage": "pretrain", "run": "demo", "commit": "0" * 40, "remote": "s3://bucket/dvc", "reads": {}}
    assert Order(**right).ref == f"refs/align/stages/{'0' * 40}"  # type: ignore[arg-type]  # values of several types
    with pytest.raises(ValidationError):
        Order(**right | wrong)
