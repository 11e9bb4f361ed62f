"""A checkpoint as a model folder, for `--checkpoint` of `align export` and `align evaluate`."""

from __future__ import annotations

from pathlib import Path

import torch

from align.config import Params
from align.display.console import say
from align.errors import ConfigError, DataError
from align.formats.shards import read_manifest
from align.interfaces.store import Tars
from align.model.dual_encoder import DualEncoder
from align.training import finetune, pretrain
from align.training.batches.index import SplitIndex
from align.training.batches.samples import SplitSamples
from align.training.ranks.process_group import Ranks
from align.training.stage import plan_of, save_trained
from align.training.train import new_model, require_best
from align.training.validation import refresh_statistics

_STAGES = {"pretrain": pretrain.work_of, "finetune": finetune.work_of}


def model_of_checkpoint(params: Params, checkpoint: str, folder: Path) -> None:
    """Writes the weights of a run after a step, as its validation sees them, into an existing folder.

    The run is that of the parameters, the data and, if it has begun, of this code; else of the code that came furthest.
    `checkpoint` is STEP, `best` or `last` of finetune; of another stage with its name before it, `pretrain:best`.

    Raises:
        ConfigError: this names no checkpoint.
        DataError: there is no such run, or the checkpoint is not kept; or as `make_plan`. CorruptError: it is damaged.
    """
    stage, _, which = checkpoint.rpartition(":")
    stage = stage or "finetune"
    if stage not in _STAGES or not (which in ("best", "last") or which.isdecimal()):
        raise ConfigError(f"--checkpoint {checkpoint}: write STEP, best or last, or one of these with pretrain: before")
    plan = plan_of(params, _STAGES[stage](params))
    run = plan.folder()
    run.fetch()
    if not run.steps():
        run = run.of_other_code() or run
    saved = run.load_latest(torch.device("cpu"))
    if saved is None:
        raise DataError(f"--checkpoint {checkpoint}: {run.directory}: no run of these parameters and data has begun")
    if which != "last":
        saved = run.load(require_best(saved["rows"], plan.recipe) if which == "best" else int(which))
    model, step = new_model(plan, first=False), int(saved["step"])
    model.load_state_dict(saved["model"])
    say(f"{stage}: the model of {run.directory} after step {step:,}")
    if not any(row["step"] == step and any(name.startswith("val/") for name in row) for row in saved["rows"]):
        _refresh(model, plan.sources().train)  # batch-norm's statistics in it are of an earlier step
    ends = step == plan.recipe.num_steps and plan.recipe.export != "best"
    choice = "best" if which == "best" else "last" if ends else "by hand"
    save_trained(plan, model, step, choice, folder)


def estimate_from_shards(model: DualEncoder, shards: Path, tars: Tars | None) -> None:
    """Sets batch-norm's statistics to those of training pictures in a folder of shards, or else in an object store.

    Raises DataError: there are no shards, or they have smaller pictures than the model.
    """
    manifest, config = read_manifest(shards), model.config
    if manifest.image_px < config.resize_px:
        raise DataError(f"{shards} holds images of {manifest.image_px} px, and the model needs {config.resize_px}")
    index = SplitIndex.of(shards, manifest, "train", tars)
    _refresh(model, SplitSamples(index, config.resize_px, tars))


def _refresh(model: DualEncoder, samples: SplitSamples) -> None:
    """Sets batch-norm's statistics as a validation now would."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refresh_statistics(model.to(device).train(), samples, Ranks(0, 1, device))
