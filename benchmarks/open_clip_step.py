"""Our whole training step against open_clip's around the same towers; runs in the environment of the peers.

Theirs is `train_one_epoch` of open_clip_train, with its arguments' defaults, its ClipLoss, its groups of AdamW and its
cosine rate, in float32 as ours on a CPU. Its batches are ready tensors in memory: normalised pixels, and ids padded to
the full 64 tokens, as its tokenizers pad, which costs it little, since our text tower skips them. Ours starts from
decoded pictures and texts, which it crops, flips and tokenises in its time.

Step by step in one process: `train` calls `log` after each of ours, and there open_clip trains an epoch of one batch,
the same one. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from open_clip import create_loss
from open_clip_train.data import DataInfo
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn
from torch.nn import functional as F

from align.display.console import say
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.model.tokenizer import pad
from align.training.state import new_state
from benchmarks.measure import Comparison, compare, cpu_s, in_process
from benchmarks.presets import PRESETS, Preset, preset, recipe
from benchmarks.training import BATCH_SIZE, train_in_memory
from benchmarks.world import World

#: The first step warms up and the last one ends the run: neither counts.
NUM_STEPS = 8


class AsOpenClip(nn.Module):
    """Our towers with the interface of open_clip's CustomTextCLIP, which has the logarithm of a scale of its own."""

    def __init__(self, towers: DualEncoder, pad_id: int) -> None:
        super().__init__()
        self.towers = towers
        self.logit_scale = nn.Parameter(-self.towers.log_temperature.detach().clone())
        self.towers.log_temperature.requires_grad_(False)
        self._pad_id = pad_id

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        known = texts != self._pad_id
        mask = known[:, None, None, :] if texts.is_cuda else known.long()  # as our step has it: no wait for the host
        return {
            "image_features": self.towers.encode_image(images),
            "text_features": self.towers.encode_text(texts, mask),
            "logit_scale": self.logit_scale.exp(),
        }


@dataclass(frozen=True)
class InMemory:
    """Of a DataLoader, what `train_one_epoch` asks for."""

    batches: list[tuple[Tensor, Tensor]]

    @property
    def num_batches(self) -> int:
        return len(self.batches)

    @property
    def num_samples(self) -> int:
        return sum(len(images) for images, _ in self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class OpenClip:
    """A run of open_clip, as its `main` sets it up.

    Args:
        towers: on the device.
        pad_id: of its texts.
        num_steps: of the run.
        arguments: of its command line.
    """

    def __init__(
        self, towers: DualEncoder, pad_id: int, num_steps: int,
        arguments: tuple[str, ...] = ("--precision=fp32", "--device=cpu"),
    ) -> None:  # fmt: skip
        self._args: Any = parse_args([*arguments, "--warmup=1"])
        vars(self._args).update(distributed=False, rank=0, local_rank=0, world_size=1, distill=False, wandb=False)
        args = self._args
        self._model, self._loss = AsOpenClip(towers, pad_id).to(args.device), create_loss(args)
        named = [(name, param) for name, param in self._model.named_parameters() if param.requires_grad]
        plain = {
            name for name, param in named
            if param.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
        }  # fmt: skip
        self._optimizer = torch.optim.AdamW(
            [{"params": [param for name, param in named if name in plain], "weight_decay": 0.0},
             {"params": [param for name, param in named if name not in plain], "weight_decay": args.wd}],
            lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps,
        )  # fmt: skip
        self._schedule = cosine_lr(self._optimizer, args.lr, args.warmup, num_steps)

    def step(self, number: int, *batches: tuple[Tensor, Tensor]) -> None:
        """An epoch of these batches; it waits for the first and the last, to log their losses."""
        data = {"train": DataInfo(InMemory(list(batches)))}
        train_one_epoch(self._model, data, self._loss, number, self._optimizer, None, self._schedule, None, self._args)


def ready_batch(world: World, some: Preset, step: int) -> tuple[Tensor, Tensor]:
    """The batch that ours had in this step."""
    batch = some.loader(recipe(world, num_steps=NUM_STEPS, batch_size=BATCH_SIZE)).batch(step)
    ids, _ = pad(some.tokenizer.ids(batch.texts), some.tokenizer.pad_id)
    ids = F.pad(ids, (0, some.config.max_tokens - ids.shape[1]), value=some.tokenizer.pad_id)
    return to_pixels(batch.images), ids


def run(world: World) -> list[Comparison]:
    logging.disable(logging.INFO)
    rows = []
    for name in PRESETS:
        say(f"benchmark: steps, and open_clip's, {name}")
        ours_s, theirs_s = _timed(world, preset(world, name))
        ours, theirs = (in_process(function, world, name)[1] >> 20 for function in (_ours, _theirs))
        rows.append(
            compare(
                f"training step, {name}, batch {BATCH_SIZE}", "open_clip's step", "pairs / CPU s", items=BATCH_SIZE,
                ours_s=ours_s, theirs_s=theirs_s,
                note=f"the same towers; peak memory {ours:,} against {theirs:,} MiB",
            )
        )  # fmt: skip
    return rows


def _timed(world: World, some: Preset) -> tuple[list[float], list[float]]:
    """CPU seconds of each step that counts, ours and theirs."""
    peer = OpenClip(some.model(), some.tokenizer.pad_id, NUM_STEPS)
    ours: list[float] = []
    theirs: list[float] = []
    started = 0.0

    def log(_: dict[str, float], step: int) -> None:
        nonlocal started
        spent, counts = time.process_time() - started, 1 < step < NUM_STEPS
        took = cpu_s(partial(peer.step, step - 1, ready_batch(world, some, step - 1)))
        if counts:
            ours.append(spent)
            theirs.append(took)
        started = time.process_time()

    train_in_memory(world, some, new_state(some.model(), recipe(world, num_steps=NUM_STEPS)), log, num_steps=NUM_STEPS)
    return ours, theirs


def _ours(world: World, name: str) -> None:
    _alone(lambda some: train_in_memory(
        world, some, new_state(some.model(), recipe(world, num_steps=2)), num_steps=2
    ), world, name)  # fmt: skip


def _theirs(world: World, name: str) -> None:
    def two_steps(some: Preset) -> None:
        peer = OpenClip(some.model(), some.tokenizer.pad_id, 2)
        for step in range(2):
            peer.step(step, ready_batch(world, some, step))

    _alone(two_steps, world, name)


def _alone(function: Callable[[Preset], object], world: World, name: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    function(preset(world, name))
