"""A small project of `align init`, for tests: eighty pictures with captions, and a model of two steps."""

from __future__ import annotations

from pathlib import Path

from tests.support import ROOT, own_model
from tests.support.dvc_projects import shell

#: A model that is made in seconds, over the profile for photographs. One thread: more wait for each other where other
#: tests run.
VALUES = {
    "engine.num_workers": 1,
    "shard.image_px": 48,
    "model.resize_px": 36,
    "model.image_px": 32,
    "model.image_tower.width_coefficient": 0.25,
    "model.image_tower.depth_coefficient": 0.25,
    "model.embed_width": 80,  # the image tower's own, so that the model can be exported for transformers
    "model.text_tower.width": 64,
    "model.text_tower.layers": 1,
    "model.text_tower.heads": 2,
    "pretrain.num_steps": 2,
    "pretrain.warmup_steps": 1,
    "pretrain.batch_size": 16,
    "pretrain.num_processes": 1,
    "pretrain.num_threads": 1,
    "pretrain.validate_every_steps": 2,
    "finetune.num_steps": 1,
    "finetune.num_processes": 1,
    "finetune.num_threads": 1,
    "finetune.validate_every_steps": 1,
    "evaluate.num_resamples": 100,
    "promote.min_times_chance": 0,  # of a handful of test pictures, any ten have the right one
}


def write(home: Path) -> Path:
    """Makes the project `home/mine` over `home/photos`; nothing has run.

    Returns:
        The project.
    """
    own_model.write_photos(home)
    values = " ".join(f"--set {key}={value}" for key, value in VALUES.items())
    shell(
        home,
        f"align init mine --profile photographs --set paths.archive=photos {values}",
        {"PYTHONPATH": str(ROOT)},
    )
    return home / "mine"
