"""A small data/shards and data/tokenizer with something to learn: coloured squares and what they are called."""

import os
import signal
from dataclasses import replace

import numpy as np
import simplejpeg
import torch

from align.config.recipe import FinetuneConfig, PretrainConfig
from align.formats.shards import Sample
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from align.training.plan import THIS_MACHINE, Monitoring, TrainingInputs, Work, make_plan
from tests.support.shard_folder import write_shards
from tests.support.tiny_model import TINY

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SIDES = {"top": (0, slice(None)), "bottom": (1, slice(None)), "left": (slice(None), 0), "right": (slice(None), 1)}
IMAGE_PX = 36

MODEL = TINY.model_copy(update={"stochastic_depth": 0.1})

RECIPE = {
    "seed": 0, "num_steps": 8, "image_px": None, "resize_px": None, "stochastic_depth": None,
    "batch_size": 8, "micro_batch": None, "optimiser": "lamb", "learning_rate": 0.02,
    "text_learning_rate_scale": 0.5, "vector_learning_rate_scale": 0.2, "schedule": "linear",
    "warmup_steps": 2, "weight_decay": 1e-5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6,
    "text_init_std": None, "position_init_scale": 0.1, "image_weights": None, "text_weights": None, "locked": "none",
    "loss": "align", "label_smoothing": 0.1, "negatives_share": 1.0,
    "global_rho": 3.0, "global_gamma": 0.2, "global_eps": 2e-4,
    "learn_temperature": True, "clip_norm": None,
    "crop_scale": [1.0, 1.0], "flip": False, "precision": "bfloat16",
    "gradient_checkpointing": "none", "shard_weights": False,
    "compile": False,
    "phrase_dropout": 0.0,
    "sentence_share": 0.0,
    "words_steps": 0, "words_min_count": 2, "words_loss": "binary",
    "alike_share": 0, "alike_group": 2, "alike_cluster": 4,
    "text_balance": None,
    "log_every_steps": 2, "validate_every_steps": 4, "validate_on": [], "checkpoint_every_steps": 3,
    "keep_checkpoints": 2, "best_metric": None, "export": "last", "num_processes": 1,
    "num_threads": 1, "max_pairs": None, "extra_shards": [],
    "on_corrupt_shard": "stop",
}  # fmt: skip


class TermAt:
    """A log function that sends this process SIGTERM after a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, metrics, step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def pretrain_config(**changes):
    return PretrainConfig.model_validate(RECIPE | changes)


def finetune_config(**changes):
    of_stage = {"from": "models/pretrained", "warmup_steps": 0, "num_steps": 3}
    return FinetuneConfig.model_validate(RECIPE | of_stage | changes)


def plan(
    data, checkpoints, recipe=None, *, model=MODEL, initial=None, log=None, health=None, infrastructure=THIS_MACHINE
):
    """A plan over the shards and the tokenizer that `write` wrote."""
    shards, tokenizer = data
    return make_plan(
        Work(recipe or pretrain_config(), model, TrainingInputs(shards, tokenizer, initial)), checkpoints,
        infrastructure=infrastructure, monitoring=Monitoring(log, health),
    )  # fmt: skip


def assert_same(ours, theirs):
    """Two runs have the same curves, answers and weights, to the last bit."""
    assert ours is not None and theirs is not None and ours.rows == theirs.rows
    assert ours.found == theirs.found
    weights = theirs.model.state_dict()
    for name, weight in ours.model.state_dict().items():
        assert torch.equal(weights[name], weight), name


def with_log(plan, log):
    """The same plan with live logging."""
    return replace(plan, monitoring=replace(plan.monitoring, log=log))


def samples(count, first=0, px=IMAGE_PX):
    """Half of each picture in a colour; two texts each."""
    made = []
    for index in range(first, first + count):
        generator = np.random.default_rng(index)
        colour = list(COLOURS)[index % 4]
        side = list(SIDES)[index // 4 % 4]
        picture = generator.integers(0, 40, (2, 2, 3)) + 200
        picture[SIDES[side]] = COLOURS[colour]
        pixels = np.kron(picture, np.ones((px // 2, px // 2, 1))).clip(0, 255).astype(np.uint8)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90)
        texts = (f"a {colour} bar at the {side}", f"{side} side in {colour}")
        key = f"{index:09d}"
        made.append(Sample(key, f"{index:064x}", jpeg, (key, f"{index + 500000:09d}"), texts))
    return made


def write(root, *, num_train=24, num_val=8, px=IMAGE_PX):
    """Writes `root/shards` (two training tars) and `root/tokenizer`; returns both."""
    shards, tokenizer = root / "shards", root / "tokenizer"
    tokenizer.mkdir(parents=True)
    train, val = samples(num_train, px=px), samples(num_val, first=1000, px=px)
    half = num_train // 2
    tars = {"train": [train[:half], train[half:]], "val": [val]}
    write_shards(shards, tars, image_px=px)
    texts = [text for sample in train for text in sample.texts]
    save_tokenizer(fit_wordpiece(texts, vocab_size=100, min_count=1), tokenizer, max_tokens=MODEL.max_tokens)
    return shards, tokenizer
