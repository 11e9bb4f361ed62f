"""What a run would do: what is expected, missing and refused."""

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from align.config import Params
from align.errors import DataError
from flows import plan as plan_module
from flows.dag import read_dag, select
from flows.plan import Plan, make_plan
from flows.request import Request
from flows.run.context import RunContext
from flows.states import StageState
from tests.support import three_stages
from tests.support.params import PARAMS_FILE, load_params
from tests.support.warm import commands


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project of three stages."""
    return three_stages.write(tmp_path_factory.mktemp("plan") / "project")


def plan_of(root, *found, first=None, counts_memory=False):
    run = RunContext(root=root, checkout=root, name="x", chosen=select(read_dag(root), first=first))
    return make_plan(run, {one.stage: one for one in found}, counts_memory=counts_memory)


UNCHANGED = tuple(StageState(stage=name, state="unchanged", num_bytes=10) for name in ("ingest", "filter", "index"))


def test_a_missing_input_is_refused_before_it_costs(made):
    gone = StageState(stage="ingest", state="stale", why=("source.txt does not exist",), missing=("source.txt",))
    plan = plan_of(made, gone, *UNCHANGED[1:])
    with pytest.raises(DataError, match=r"^ingest: source\.txt does not exist, and no stage makes it"):
        plan.require_possible()
    assert "cannot work: ingest: source.txt" in plan.text() and "**Cannot work**" in plan.markdown()
    plan_of(made, *UNCHANGED).require_possible()


def test_what_comes_before_must_not_be_stale(made):
    stale = [StageState(stage=name, state="stale", why=("changed code",)) for name in ("ingest", "filter", "index")]
    with pytest.raises(DataError) as caught:
        plan_of(made, *stale, first="index").require_possible()
    assert str(caught.value) == (
        "ingest, filter must run before index: ingest is stale (changed code); run all, or from ingest"
    )
    plan_of(made, *UNCHANGED[:2], stale[2], first="index").require_possible()
    with pytest.raises(DataError, match=r"^index: data/filtered does not exist: `dvc checkout filter` brings it back"):
        lost = stale[2].model_copy(update={"missing": ("data/filtered",)})
        plan_of(made, *UNCHANGED[:2], lost, first="index").require_possible()


def test_a_disk_that_is_too_small_is_refused(made, monkeypatch):
    large = StageState(stage="filter", state="stale", num_bytes=2_000_000_000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: usage(9e9, 8e9, 1_000_000_000))
    with pytest.raises(DataError, match=r"1\.0 GB are free, and the run needs 2\.0 GB"):
        plan_of(made, UNCHANGED[0], large, UNCHANGED[2]).require_possible()
    plan_of(made, *UNCHANGED).require_possible()  # what is there already needs no space


GIVEN = {"path": "nowhere", "sha256": "0" * 64}


@pytest.mark.parametrize(("model", "section", "values", "said"), [
    ({"image_tower": "timm:test_vi"}, "", {}, "model.image_tower timm:test_vi: timm .* has no such model"),
    ({}, "fit_tokenizer", {"from": GIVEN}, "nowhere: "),
    ({"image_tower": "timm:test_vit"}, "", {}, None),
    ({}, "", {}, None),
])  # fmt: skip
def test_what_training_would_refuse_of_its_towers_is_refused_before_it_costs(
    tmp_path, monkeypatch, model, section, values, said
):
    monkeypatch.setattr(sys, "executable", str(commands() / "python"))  # a fork in place of a process
    yaml = YAML()
    params = yaml.load(PARAMS_FILE)
    params["model"] |= model
    if section:
        params[section] |= values
    yaml.dump(params, tmp_path / "params.yaml")
    stages = three_stages.DVC_YAML.replace("data/index", "models/pretrained").replace("index", "pretrain")
    (tmp_path / "dvc.yaml").write_text(stages.replace("release", "training"))
    stale = StageState(stage="pretrain", state="stale")
    plan = plan_of(tmp_path, *UNCHANGED[:2], stale, counts_memory=not (model or section))
    if said is None:
        assert plan.refused == () and "for each of" in plan.figures["pretrain, memory"]
        return
    with pytest.raises(DataError, match=f"^{said}") as error:
        plan.require_possible()
    assert "\n" not in str(error.value) and len(plan.refused) == 1
    assert plan_of(tmp_path, *UNCHANGED[:2], StageState(stage="pretrain", state="unchanged")).refused == ()


def test_rows_are_those_of_the_reports(made):
    known = StageState(stage="ingest", state="unchanged", metrics={"ingest/num_pairs": 1234})
    figures = plan_of(made, known, StageState(stage="filter", state="stale"), UNCHANGED[2]).figures
    assert figures["pairs"] == "1,234" and figures["pairs kept"] == "unknown until filter has run"


def test_a_bar_that_few_models_reach_is_told_before():
    params = load_params(overrides=["promote.metrics=[test/image_to_text/recall@10, vendor/mean_recall]"])
    (said,) = plan_module._bar(params, {"shard/test/num_images": 41})
    assert said.startswith("among 41 test pictures a first promotion needs a lower bound of 73%, 3 times chance; what ")
    for num in ({}, {"shard/test/num_images": 60}):
        assert plan_module._bar(params, num) == []


def test_as_a_command(made):
    def ask(*arguments):
        command = [str(commands() / "python"), "-m", "flows", "plan", *arguments]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, cwd=made, env=env, capture_output=True, text=True, check=False)

    done = ask(Request(to_stage="filter").model_dump_json(), "--json")
    assert done.returncode == 0, done.stderr
    assert [one["stage"] for one in json.loads(done.stdout)["stages"]] == ["ingest", "filter"]
    done = ask(Request(overrides={"promote.margin": "much"}).model_dump_json())
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "'promote.margin' = 'much'" in done.stderr
    (made / "source.txt").rename(made / "elsewhere.txt")
    done = ask(Request(to_stage="filter").model_dump_json())
    (made / "elsewhere.txt").rename(made / "source.txt")
    assert (done.returncode, done.stderr) == (0, "")  # a missing input is part of the plan
    assert "cannot work: ingest: source.txt does not exist" in done.stdout
    assert not list(made.glob(".align/worktrees/*"))


@pytest.mark.parametrize(("vocab_size", "most"), [(None, "at most "), (500, "at most "), (1000, "")])
def test_parameters_are_an_upper_bound_until_the_vocabulary_has_its_size(vocab_size, most):
    need = dict.fromkeys(("rank_bytes", "num_ranks", "state_bytes", "pairs_at_a_time", "available_bytes"), 1)
    need |= {"activation_bytes_per_pair": 1, "num_parameters": 2_500_000}
    params = Params(
        {"pretrain": {"num_steps": 2, "batch_size": 3}, "fit_tokenizer": {"vocab_size": 1000}}, Path("params.yaml")
    )
    metrics = {} if vocab_size is None else {"fit_tokenizer/vocab_size": float(vocab_size)}
    figures = plan_module._training("pretrain", params, metrics, {**need, "device": "CPU"})
    assert figures["pretrain, model"] == f"{most}2.50 M parameters"


def test_no_word_of_a_plan_is_markdown():
    hostile = "![a](http://x/b.png) <img> | [c](http://x)"
    words = {"figures": {"source": hostile}, "warnings": (hostile,), "refused": (hostile,)}
    made = Plan.model_validate({"name": "x", "stages": (), "before": (), **words})
    assert not re.search(r"(?<!\\)[\[<]", made.markdown()) and made.markdown().count(r"!\[a\]") == 3
