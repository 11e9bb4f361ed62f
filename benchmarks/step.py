"""Our whole training step against open_clip's around the same towers; open_clip runs in our process.

Theirs is `train_one_epoch` of open_clip_train, with its arguments' defaults, its ClipLoss, its groups of AdamW and its
cosine rate, in float32 as ours on a CPU. Its batch is ready tensors in memory: normalised pixels, and ids padded to
the full 64 tokens, as its tokenizers pad, which costs it little, since our text tower skips them. Ours starts from
cropped pictures as bytes, which it normalises in its time, and from ids. Both take steps on one batch, in one process;
peak memory is that of a process of its own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.model import ModelConfig
from align.config.recipe import PretrainConfig
from align.display.console import say
from align.formats.shards import read_manifest
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer, pad
from align.training.batches.augmentation import Augmentation
from align.training.batches.batch import Batch
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.ranks.process_group import Ranks
from align.training.state import new_state
from align.training.step import compute_gradients
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World
from tests.support.own_process import in_process

BATCH_SIZE = 256
REPETITIONS = 6
#: Name -> what differs from params.yaml, which is the demo: the paper's smallest published shapes (6.1), at the demo's
#: 64 px, so that two cores can; larger pictures would only make what is not the towers weigh less.
PRESETS: dict[str, dict[str, object]] = {
    "demo": {},
    "B0-Mini": {"image_tower": "B0", "text_tower": "Mini", "embed_width": 640},
}
#: Of open_clip's schedule; no run is that long.
_NUM_STEPS = 1000


class Ours:
    """Steps as `align.training.train` makes them: gradients, update, and values that are read now and then."""

    def __init__(self, model: DualEncoder, recipe: PretrainConfig, device: torch.device) -> None:
        self.recipe = recipe
        self.state = new_state(model.to(device), recipe)
        self._ranks = Ranks(0, 1, device)
        self._earlier: Tensor | None = None

    def step(self, batch: Batch) -> None:
        """One step on a batch that lies on the host."""
        model, optimiser = self.state.model, self.state.optimiser
        optimiser.set_learning_rate(1e-4)
        loss = compute_gradients(model, self.recipe, self._ranks, batch).loss
        optimiser.step()
        if self._earlier is not None:
            self._earlier.item()
        self._earlier = loss


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
        arguments: of its command line.
    """

    def __init__(
        self, towers: DualEncoder, pad_id: int, arguments: tuple[str, ...] = ("--precision=fp32", "--device=cpu")
    ) -> None:
        from open_clip import create_loss
        from open_clip_train.params import parse_args
        from open_clip_train.scheduler import cosine_lr

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
        self._schedule = cosine_lr(self._optimizer, args.lr, args.warmup, _NUM_STEPS)
        self._number = 0

    def step(self, *batches: tuple[Tensor, Tensor]) -> None:
        """An epoch of these batches; it waits for the first and the last, to log their losses."""
        from open_clip_train.data import DataInfo
        from open_clip_train.train import train_one_epoch

        data, number = {"train": DataInfo(InMemory(list(batches)))}, self._number
        train_one_epoch(self._model, data, self._loss, number, self._optimizer, None, self._schedule, None, self._args)
        self._number += 1


def ready(batch: Batch, tokenizer: TextTokenizer, max_tokens: int) -> tuple[Tensor, Tensor]:
    """A batch as open_clip takes it: (B, 3, H, W) normalised pixels, and (B, max_tokens) ids."""
    ids, _ = pad(tokenizer.ids(batch.texts), tokenizer.pad_id)
    return to_pixels(batch.images), F.pad(ids, (0, max_tokens - ids.shape[1]), value=tokenizer.pad_id)


def run(world: World) -> list[Comparison]:
    torch.set_num_threads(1)
    rows = []
    for name in PRESETS:
        say(f"benchmark: steps, and open_clip's, {name}")
        ours_s, theirs_s = interleaved(_our_steps(world, name), _their_steps(world, name), REPETITIONS)
        ours, theirs = (in_process(_two_steps, world, name, of)[1] >> 20 for of in (_our_steps, _their_steps))
        rows.append(
            compare(
                f"training step, {name}, batch {BATCH_SIZE}", "open_clip's step", "pairs / CPU s", items=BATCH_SIZE,
                ours_s=ours_s, theirs_s=theirs_s,
                note=f"the same towers; peak memory {ours:,} against {theirs:,} MiB",
            )
        )  # fmt: skip
    return rows


def _made(world: World, name: str) -> tuple[DualEncoder, TextTokenizer, Batch]:
    """A preset's towers, the same weights each time, and a batch of the sample."""
    config = world.params.section(ModelConfig).model_copy(update=PRESETS[name])
    tokenizer = TextTokenizer.load(world.tokenizer, config.max_tokens)
    torch.manual_seed(0)
    model = DualEncoder(config, tokenizer.vocab_size).train()
    recipe = world.params.section(PretrainConfig)
    samples = SplitSamples(SplitIndex.of(world.shards, read_manifest(world.shards), "train"), config.resize_px)
    augmentation = Augmentation(tokenizer, config.image_px, model.vision_model.num_blocks, recipe.flip)
    loader = TrainLoader([(samples, 1.0)], augmentation, seed=recipe.seed, batch_size=BATCH_SIZE)
    return model, tokenizer, next(loader.batches(0, 1))


def _our_steps(world: World, name: str) -> Callable[[], None]:
    model, _, batch = _made(world, name)
    recipe = world.params.section(PretrainConfig).model_copy(update={"batch_size": BATCH_SIZE})
    return functools.partial(Ours(model, recipe, torch.device("cpu")).step, batch)


def _their_steps(world: World, name: str) -> Callable[[], None]:
    logging.disable(logging.INFO)
    model, tokenizer, batch = _made(world, name)
    peer = OpenClip(model, tokenizer.pad_id)
    return functools.partial(peer.step, ready(batch, tokenizer, model.config.max_tokens))


def _two_steps(world: World, name: str, steps: Callable[[World, str], Callable[[], None]]) -> None:
    torch.set_num_threads(1)
    step = steps(world, name)
    step(), step()
