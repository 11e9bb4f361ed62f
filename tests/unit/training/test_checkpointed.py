"""Which checkpoint becomes the model: `pretrain.export`, and `--checkpoint` of a run that trains or has ended."""

import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from align.errors import AlignError, ConfigError
from align.formats.model_folder import read_config
from align.model.dual_encoder import load_model
from align.training import pretrain
from align.training.checkpointed import model_of_checkpoint
from align.training.stage import train_stage
from align.training.state import best_step
from align.training.train import run
from tests.support.params import load_params
from tests.support.training_data import MODEL, RECIPE, plan, pretrain_config
from tests.support.training_project import write_project

KEPT = {"checkpoint_every_steps": 1, "keep_checkpoints": 8, "best_metric": "val/effective_rank"}
METRIC = "val/text_to_image/recall@10"  # 1 at each step with so few pictures, and the first of equals is the best
EACH = KEPT | {"validate_every_steps": 1, "best_metric": METRIC}


@pytest.fixture(scope="module", name="ended")
def _ended(data, tmp_path_factory):
    """The checkpoints of a run, all of them."""
    run(plan(data, folder := tmp_path_factory.mktemp("ended"), pretrain_config(**KEPT)))
    return folder


@pytest.fixture(scope="module", name="each")
def _each(data, tmp_path_factory):
    """Those of a run of the same weights that validated at each step, the first of which is the best."""
    run(plan(data, folder := tmp_path_factory.mktemp("each"), pretrain_config(**EACH)))
    return folder


@pytest.fixture(name="few")
def _few(each, tmp_path):
    """The same, had it kept its last checkpoint and the best one."""
    shutil.copytree(each, folder := tmp_path / "few")
    for step in range(1, 8):
        next(folder.glob(f"*/step-{step:08d}.pt")).unlink()
    return folder


@pytest.fixture(name="params")
def _params(data, ended, tmp_path, monkeypatch):
    """Of the project in which the run has ended."""
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, data, RECIPE | KEPT)
    shutil.copytree(ended, tmp_path / "checkpoints")
    return load_params(Path("params.yaml"))


def weights(folder):
    return dict(load_model(folder).state_dict())


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_the_best_checkpoint_is_exported_and_a_finished_run_is_not_trained_again(data, few, tmp_path):
    last = plan(data, few, pretrain_config(**EACH))
    train_stage(last, out=tmp_path / "last", reports=tmp_path / "r")
    best = plan(data, few, pretrain_config(**EACH, export="best"))
    assert best.name == last.name
    finished = train_stage(best, out=tmp_path / "best", reports=tmp_path / "r2")
    saved = torch.load(best.folder().directory / "best.pt", weights_only=True)
    assert finished is not None and saved["step"] == 1
    assert_equal(weights(tmp_path / "best"), saved["model"])
    assert read_config(tmp_path / "last").chosen is None
    chosen = {"checkpoint": "best", "step": saved["step"], "metric": METRIC}
    assert read_config(tmp_path / "best").chosen == chosen
    metrics = finished.metrics
    assert metrics["pretrain/exported_step"] == saved["step"] and metrics["pretrain/num_steps"] == 8
    assert metrics["pretrain/val/effective_rank"] == saved["rows"][-1]["val/effective_rank"]


def test_a_best_step_before_the_first_row_is_exported(data, tmp_path, monkeypatch, capsys):
    """No loss has been averaged until then, so none is said."""
    write_project(tmp_path, data, RECIPE | EACH | {"export": "best"})
    monkeypatch.chdir(tmp_path)
    pretrain.main(load_params(tmp_path / "params.yaml"), Namespace(data=(), accept_code_change=None))
    assert read_config(tmp_path / "models/pretrained").chosen["step"] == 1
    assert "is of step 1, the best" in capsys.readouterr().err


def test_a_best_checkpoint_that_is_not_kept_is_named(data, few):
    """By another metric another step is the best, which training did not keep."""
    other = EACH | {"best_metric": "val/text_to_image/recall@1"}
    step = best_step(run(plan(data, few, pretrain_config(**other))).rows, other["best_metric"])
    assert step not in (1, 8)
    with pytest.raises(AlignError, match=rf"no checkpoint of step {step} is kept; the latest are \[8\]"):
        run(plan(data, few, pretrain_config(**other, export="best")))


def test_what_cannot_be_exported_is_said_before_training():
    assert "export" in str(pretrain_config(export="best", best_metric=None).against(MODEL, 1, 1))
    assert pretrain_config(export="best", best_metric="val/effective_rank").against(MODEL, 1, 1) is None


def test_a_checkpoint_is_a_model_folder(data, params, tmp_path):
    train_stage(
        plan(data, tmp_path / "checkpoints", pretrain_config(**KEPT)), out=tmp_path / "a", reports=tmp_path / "r"
    )
    (tmp_path / "b").mkdir()
    model_of_checkpoint(params, "pretrain:last", tmp_path / "b")
    assert_equal(weights(tmp_path / "b"), weights(tmp_path / "a"))
    for file in ("config.json", "tokenizer/tokenizer.json"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()


def test_statistics_are_those_that_a_validation_at_this_step_would_have(data, params, each, tmp_path):
    """The run validated at steps 4 and 8; another one, of the same weights, at each step."""
    validated = plan(data, each, pretrain_config(**EACH)).folder()
    for step in (4, 6):
        (folder := tmp_path / str(step)).mkdir()
        model_of_checkpoint(params, f"pretrain:{step}", folder)
        assert_equal(weights(folder), validated.load(step)["model"])
        assert read_config(folder).chosen == {"checkpoint": "by hand", "step": step}


def test_a_run_of_other_code_will_do_and_one_of_other_values_will_not(data, params, tmp_path):
    folder = plan(data, tmp_path / "checkpoints", pretrain_config(**KEPT)).folder().directory
    folder.rename(folder.with_name(folder.name[:-8] + "0" * 8))
    model_of_checkpoint(params, "pretrain:best", tmp_path)
    assert read_config(tmp_path).chosen is not None
    with pytest.raises(AlignError, match="no run of these parameters and data has begun"):
        model_of_checkpoint(load_params(Path("params.yaml"), ["pretrain.seed=7"]), "pretrain:best", tmp_path)


@pytest.mark.parametrize("word", ["first", "shard:4", "pretrain:", "-1", ""])
def test_other_words_are_refused(tmp_path, word):
    with pytest.raises(ConfigError, match="write STEP, best or last"):
        model_of_checkpoint(load_params(), word, tmp_path)
