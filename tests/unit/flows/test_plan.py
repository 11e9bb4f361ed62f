"""What a run would do: stages followed through a real DVC cache, and what is expected, missing and refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from dvc.lock import Lock  # type: ignore[import-untyped]  # DVC ships no types
from ruamel.yaml import YAML

from align.config import Params
from align.config.params import profile_overrides
from align.errors import DataError
from align.services.dvc.repository import DvcError
from flows import plan as plan_module
from flows.checkout.stage_states import StageState, States, read_states, read_status
from flows.checkout.worktree import worktree
from flows.dag import read_dag, select
from flows.plan import Plan, Speed, keep_speeds, make_plan, read_speeds
from flows.request import Request
from flows.run.context import RunContext
from tests.support.dvc_projects import commit_all, make_repository
from tests.support.params import PARAMS_FILE, load_params
from tests.support.warm import commands

#: A stage copies its input, and writes a report: sh stage.sh NAME OUT INPUT.
STAGE = """\
mkdir -p $2 reports/$1
cat $3 > $2/table
echo "{\\"$1/num_pairs\\": 7}" > reports/$1/metrics.json
"""
DVC_YAML = """\
stages:
  ingest:
    cmd: sh stage.sh ingest data/raw source.txt
    deps: [source.txt]
    params: [ingest]
    outs: [data/raw, reports/ingest]
    meta: {flow: data}
  filter:
    cmd: sh stage.sh filter data/filtered data/raw/table
    deps: [data/raw, reports/ingest/metrics.json]
    params: [filter]
    outs: [data/filtered, reports/filter]
    meta: {flow: data}
  index:
    cmd: sh stage.sh index data/index data/filtered/table
    deps: [data/filtered]
    params: [index]
    outs: [data/index, reports/index]
    meta: {flow: release}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose stages have all run once."""
    root = tmp_path_factory.mktemp("plan") / "project"
    files = {
        "dvc.yaml": DVC_YAML, "params.yaml": PARAMS_FILE.read_text("utf-8"), "source.txt": "pairs\n", "stage.sh": STAGE,
    }  # fmt: skip
    make_repository(root, files, "")
    subprocess.run([str(commands() / "dvc"), "repro", "--quiet"], cwd=root, check=True)
    commit_all(root)
    return root


def states(root, checkout=None):
    run = RunContext(root=root, checkout=checkout or root, chosen=select(read_dag(root)))
    return {one.stage: one for one in read_states(run).stages}


def test_followed_through_the_cache_without_a_checkout(made, tmp_path):
    found = states(made)
    assert {one.state for one in found.values()} == {"unchanged"}
    assert found["filter"].metrics == {"filter/num_pairs": 7} and (found["filter"].num_bytes or 0) > 5

    # in a worktree nothing is there, no dvc.lock either: all comes from the cache, without being checked out
    (made / "dvc.lock").rename(tmp_path / "dvc.lock")  # as on main, git does not have it
    commit_all(made, "without dvc.lock")
    shutil.copy(tmp_path / "dvc.lock", made)
    with worktree(made, "HEAD", tmp_path / "same", {}) as path:
        found = states(path, made)
        assert {one.state for one in found.values()} == {"cached"} and not any(one.why for one in found.values())
        assert found["index"].metrics == {"index/num_pairs": 7} and not (path / "data").exists()
        found = states(path)  # a checkout that has run nothing: its plan need not say so of what the cache has
        assert {one.state for one in found.values()} == {"cached"} and not any(one.why for one in found.values())
    with worktree(made, "HEAD", tmp_path / "other", {"filter.min_words": 4}) as path:
        found = states(path, made)
        assert [one.state for one in found.values()] == ["cached", "runs", "runs"]
        assert found["filter"].why == ("filter.min_words 3 -> 4",)
        assert found["index"].why == ("reads what filter makes again",)
    with worktree(made, "HEAD", tmp_path / "missing", {}) as path:
        (path / "source.txt").unlink()
        assert states(path, made)["ingest"].missing == ("source.txt",)


def test_what_the_cache_has_lost_runs(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "source.txt").write_text("more pairs\n")
    found = states(copy)
    assert [one.state for one in found.values()] == ["runs", "runs", "runs"]
    assert found["ingest"].why == ("changed: source.txt",)
    shutil.copy(made / "source.txt", copy)
    shutil.rmtree(copy / ".dvc/cache/files")
    found = states(copy)
    assert [one.state for one in found.values()] == ["runs", "runs", "runs"]
    assert found["ingest"].why == ("its outs are not in DVC's cache",) and found["ingest"].metrics == {}


def test_while_dvc_works_there_one_line_says_so(made):
    """DVC's own lock, as `dvc repro` holds it."""
    with (
        Lock(str(made / ".dvc/tmp/lock"), friendly=True),
        pytest.raises(DvcError, match=f"^dvc status in {made}: Unable to acquire lock"),
    ):
        read_status(made)


def test_a_shape_that_one_format_cannot_hold_is_said_before():
    (said,) = plan_module._export(load_params(overrides=profile_overrides("cc3m")))
    assert said.startswith("model.embed_width 640 is not 384") and "open_clip" in said
    assert plan_module._export(load_params()) == []
    (said,) = plan_module._export(load_params(overrides=["model.image_tower=timm:test_vit"]))
    assert "cannot hold towers of timm" in said and said.endswith("or for open_clip if it builds this one")
    bert = "model.text_tower={config: {model_type: bert}}"
    (said,) = plan_module._export(load_params(overrides=["model.image_tower=timm:test_vit", bert]))
    assert "cannot hold towers of timm and transformers" in said and said.endswith("nor can open_clip")


def plan_of(root, *found, first=None):
    run = RunContext(root=root, checkout=root, name="x", chosen=select(read_dag(root), first=first))
    return make_plan(run, States(status={}, stages=found))


UNCHANGED = tuple(StageState(stage=name, state="unchanged", num_bytes=10) for name in ("ingest", "filter", "index"))


def test_a_missing_input_is_refused_before_it_costs(made):
    gone = StageState(stage="ingest", state="runs", why=("source.txt does not exist",), missing=("source.txt",))
    plan = plan_of(made, gone, *UNCHANGED[1:])
    with pytest.raises(DataError, match=r"^ingest: source\.txt does not exist, and no stage makes it"):
        plan.require_possible()
    assert "cannot work: ingest: source.txt" in plan.text() and "**Cannot work**" in plan.markdown()
    plan_of(made, *UNCHANGED).require_possible()


def test_what_comes_before_must_be_made(made):
    runs = [StageState(stage=name, state="runs") for name in ("ingest", "filter", "index")]
    with pytest.raises(DataError, match=r"^ingest, filter must run before index: .* or from ingest$"):
        plan_of(made, *runs, first="index").require_possible()
    plan_of(made, *UNCHANGED[:2], runs[2], first="index").require_possible()


def test_a_disk_that_is_too_small_is_refused(made, monkeypatch):
    large = StageState(stage="filter", state="runs", num_bytes=2_000_000_000)
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
    stages = DVC_YAML.replace("data/index", "models/pretrained").replace("index", "pretrain")
    (tmp_path / "dvc.yaml").write_text(stages.replace("release", "training"))
    plan = plan_of(tmp_path, *UNCHANGED[:2], StageState(stage="pretrain", state="runs"))
    if said is None:
        assert plan.refused == () and "for each of" in plan.figures["pretrain, memory"]
        return
    with pytest.raises(DataError, match=f"^{said}") as error:
        plan.require_possible()
    assert "\n" not in str(error.value) and len(plan.refused) == 1
    assert plan_of(tmp_path, *UNCHANGED[:2], StageState(stage="pretrain", state="unchanged")).refused == ()


def test_time_is_that_of_the_last_run_or_unknown(made, tmp_path):
    runs = StageState(stage="filter", state="runs")
    assert plan_of(made, UNCHANGED[0], runs, UNCHANGED[2]).figures["time"].startswith("unknown: none of")
    start = time.time() - 1
    (made / "runtime").mkdir(exist_ok=True)
    for name, outcome in (("filter", "completed"), ("index", "failed: DataError")):
        record = {"wall_s": 7200.0, "outcome": outcome}
        (made / f"runtime/{name}.json").write_text(json.dumps(record))
    (made / "runtime/ingest.json").write_text("{")
    stale = frozenset({"filter", "index", "ingest", "never"})
    keep_speeds(RunContext(root=made, checkout=tmp_path, stale=stale), start)
    assert read_speeds(tmp_path) == {"filter": Speed(wall_s=7200.0)}
    (tmp_path / ".align/speeds/index.json").write_text("cut o")
    assert read_speeds(tmp_path).keys() == {"filter"}
    os.utime(made / "runtime/filter.json", (0, 0))  # of an earlier run
    keep_speeds(RunContext(root=made, checkout=tmp_path / "none", stale=frozenset({"filter"})), start)
    assert read_speeds(tmp_path / "none") == {}
    shutil.copytree(tmp_path / ".align", made / ".align", dirs_exist_ok=True)
    figures = plan_of(made, UNCHANGED[0], runs, StageState(stage="index", state="runs")).figures
    assert figures["time"] == "about 2 h 0 min by the last measured speeds and unknown for index"


def test_rows_are_those_of_the_reports(made):
    known = StageState(stage="ingest", state="cached", metrics={"ingest/num_pairs": 1234})
    figures = plan_of(made, known, StageState(stage="filter", state="runs"), UNCHANGED[2]).figures
    assert figures["pairs"] == "1,234" and figures["pairs kept"] == "unknown until filter has run"


def test_as_a_command(made):
    def ask(*arguments):
        command = [str(commands() / "python"), "-m", "flows.plan", *arguments]
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


@pytest.mark.parametrize(("archive", "said"), [
    ("a.warc.gz", "a.warc.gz, 10 bytes"),
    ("crawl", "crawl, 2 files of 30 bytes"),
    ("crawl/*.warc.gz", "crawl/*.warc.gz, 2 files of 30 bytes"),
    ("nothing/*.gz", "nothing/*.gz, which does not exist"),
    ("s3://bucket/*.gz", "s3://bucket/*.gz, size unknown"),
])  # fmt: skip
def test_the_source_is_counted_whatever_names_it(tmp_path, archive, said):
    (tmp_path / "crawl").mkdir()
    for name, size in (("a.warc.gz", 10), ("crawl/b.warc.gz", 10), ("crawl/c.warc.gz", 20)):
        (tmp_path / name).write_bytes(bytes(size))
    assert plan_module._source(tmp_path, Params({"paths": {"archive": archive}}, Path("params.yaml"))) == said


def test_no_word_of_a_plan_is_markdown():
    hostile = "![a](http://x/b.png) <img> | [c](http://x)"
    words = {"figures": {"source": hostile}, "warnings": (hostile,), "refused": (hostile,)}
    made = Plan.model_validate({"name": "x", "stages": (), "before": (), **words})
    assert not re.search(r"(?<!\\)[\[<]", made.markdown()) and made.markdown().count(r"!\[a\]") == 3
