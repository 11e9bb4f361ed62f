"""Which stages a request names."""

from dataclasses import replace

import pytest

from align.errors import ConfigError
from flows.dag import read_dag, select
from tests.support import ROOT

STAGES = read_dag(ROOT)
DATA = {"ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer"}


def names(only: str = "all", first: str | None = None, last: str | None = None) -> tuple[set[str], set[str]]:
    found = select(STAGES, only, first, last)
    return {stage.name for stage in found.asked}, {stage.name for stage in found.before}


def test_all_and_parts() -> None:
    assert names() == ({stage.name for stage in STAGES}, set())
    assert names("data") == (DATA, set())
    assert names("training") == ({"pretrain", "finetune"}, DATA)
    assert names("evaluation") == ({"evaluate"}, DATA | {"pretrain", "finetune"})


def test_up_to_and_from() -> None:
    assert names(last="validate") == ({"ingest", "filter", "validate"}, set())
    asked, before = names(first="finetune")
    assert asked == {"finetune", "evaluate", "package", "index"} and before == DATA | {"pretrain"}
    assert names(first="shard", last="shard") == ({"shard"}, {"ingest", "filter", "validate"})
    assert names("training", first="finetune")[0] == {"finetune"}
    found = select(STAGES, last="shard")
    assert [stage.name for stage in found.stages] == ["ingest", "filter", "validate", "shard"]
    assert set(found.left_out) == {stage.name for stage in STAGES} - {"ingest", "filter", "validate", "shard"}


def test_what_the_release_does_not_read_is_left_out() -> None:
    """Such as pre-training where fine-tuning starts from an imported model; also where it is asked for."""
    imported = [
        replace(stage, upstream=tuple(name for name in stage.upstream if name not in ("pretrain", "fit_tokenizer")))
        for stage in STAGES
    ]
    for only, first in (("all", None), ("training", None), ("all", "validate_shards")):
        found = select(imported, only, first)
        assert {"pretrain", "fit_tokenizer"} <= set(found.left_out), (only, first)
        assert "finetune" in [stage.name for stage in found.asked]
    with pytest.raises(
        ConfigError, match="nothing to run: no stage is in 'all' and from pretrain and up to pretrain, and read"
    ):
        select(imported, last="pretrain", first="pretrain")


def test_nothing_and_unknown() -> None:
    with pytest.raises(ConfigError, match="nothing to run: no stage is in 'data' and from pretrain"):
        select(STAGES, "data", "pretrain")
    with pytest.raises(ConfigError, match=r"stage 'train': dvc\.yaml has no such stage; it has ingest, "):
        select(STAGES, last="train")
