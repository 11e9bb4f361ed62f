"""Where outputs may lie, and what moves with `paths.root`."""

from pathlib import Path

import pytest

from align.config import load_params
from align.config.paths import PathsConfig, require_inside
from align.config.recipe import FinetuneConfig
from align.errors import ConfigError
from tests.support.params import PARAMS_FILE


@pytest.mark.parametrize("overrides", [
    ["paths.archive=data/raw/more/*.warc.gz"], ["paths.archive=data"], ["paths.reports=data/policy/../policy"],
    ["paths.evaluation=models/finetuned"], ["paths.root=data/sample/evaluation"],
])  # fmt: skip
def test_an_output_lies_in_no_input_and_around_none(overrides):
    with pytest.raises(ConfigError, match=r"lies in, or around, the input paths\."):
        load_params(PARAMS_FILE, overrides).section(PathsConfig)


def test_inputs_may_lie_anywhere_and_outputs_beside_them():
    for archive in ("s3://bucket/crawl/*.warc.gz", "/somewhere/else", "data/raw2", "data/*.warc.gz"):
        load_params(PARAMS_FILE, [f"paths.archive={archive}"]).section(PathsConfig)
    require_inside({"archive": "s3://bucket/crawl", "evaluation": "/sets", "policy": "../policy", "raw": "data/raw"})


@pytest.mark.parametrize("value", ["/data", "../data", "data/../../data", ".", "", "s3://bucket/data"])
@pytest.mark.parametrize("name", ["raw", "reports", "runtime", "checkpoints", "index"])
def test_outputs_outside_the_tree_of_a_run_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"paths\.{name} = .*writes there only"):
        require_inside({name: value})


OUTPUTS = PathsConfig.model_fields.keys() - {"root", "archive", "evaluation", "policy"}


def test_root_moves_every_relative_output_and_no_input():
    here = load_params(PARAMS_FILE).section(PathsConfig)
    params = load_params(PARAMS_FILE, ["paths.root=../trial", "paths.index=/elsewhere/index"])
    moved = params.section(PathsConfig)
    for name in PathsConfig.model_fields.keys() - {"root", "index"}:
        before = getattr(here, name)
        assert getattr(moved, name) == (Path("../trial", before) if name in OUTPUTS else before), name
    assert moved.index == Path("/elsewhere/index")
    assert moved.moved(here.pretrained) == moved.pretrained and moved.moved(Path("theirs")) == Path("theirs")
    assert here.raw == Path("data/raw") and len(OUTPUTS) == 11


def test_fine_tuning_starts_where_pretrain_writes_unless_it_is_told_otherwise():
    elsewhere = "paths.pretrained=trial/pretrained"
    for overrides, start in (
        ([], "models/pretrained"),
        ([elsewhere], "trial/pretrained"),
        ([elsewhere, "paths.root=sub"], "sub/trial/pretrained"),
        ([elsewhere, "finetune.from=models/pretrained"], "models/pretrained"),
        (["finetune.from=imported", elsewhere], "imported"),
    ):
        params = load_params(PARAMS_FILE, overrides)
        paths = params.section(PathsConfig)
        assert paths.moved(params.section(FinetuneConfig).start) == Path(start)
        assert paths.is_made_elsewhere(params.section(FinetuneConfig).start) == any("from=" in one for one in overrides)


@pytest.mark.parametrize("root", ["/data", "../data", "a/../../data"])
def test_a_root_outside_the_tree_of_a_run_is_named(root):
    with pytest.raises(ConfigError, match=r"paths\.root = .*writes there only"):
        require_inside({"root": root, "raw": "data/raw"})
    require_inside({"root": ".", "raw": "data/raw"})
