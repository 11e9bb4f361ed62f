"""The whole training step against the bare forward and backward of the same towers on the same batches.

Both run in the same process, one after the other, step by step: `train` calls `log` after every step, and there the
bare ones are timed on the batch that the step just had. What ours does besides: crops, tokenises, draws, computes the
loss, updates with LAMB, checks and reports.
"""

from __future__ import annotations

import time

import torch

from align.config.model import ModelConfig
from align.config.pretrain import PretrainConfig
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer, pad
from align.training.checkpoint import CheckpointFolder
from align.training.index import read_outline
from align.training.loader import TrainLoader
from align.training.loop import train
from align.training.process_group import Ranks
from align.training.samples import Samples
from align.training.state import new_state
from align.training.step import CPU_PART
from tests.benchmarks.measure import Comparison, compare, cpu_s
from tests.benchmarks.world import World

#: The first step warms up and the last one ends the run: neither counts.
NUM_STEPS = 8


def bare(model: DualEncoder, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    """Forward of both towers, and backward from the sum of the cosines."""
    image_embeds = torch.cat([model.encode_image(pixels, draws) for pixels, draws, _, _ in parts])
    text_embeds = torch.cat([model.encode_text(ids, mask) for _, _, ids, mask in parts])
    (image_embeds * text_embeds).sum().backward()


def run(world: World) -> list[Comparison]:
    overrides = {
        "num_steps": NUM_STEPS, "warmup_steps": 1, "log_every_steps": 1, "validate_every_steps": NUM_STEPS,
        "checkpoint_every_steps": NUM_STEPS,
    }  # fmt: skip
    recipe = world.params.section(PretrainConfig).model_copy(update=overrides)
    config = world.params.section(ModelConfig)
    tokenizer = TextTokenizer.load(world.tokenizer, config.max_tokens)
    samples = Samples(read_outline(world.shards).split("train"), config.resize_px)
    for sample in range(samples.num_images):  # data in memory
        samples.image(sample), samples.texts(sample)
    torch.manual_seed(recipe.seed)
    state = new_state(DualEncoder(config, tokenizer.vocab_size), recipe)
    model = state.model
    loader = TrainLoader(
        samples, seed=recipe.seed, batch_size=recipe.batch_size, image_px=config.image_px, flip=recipe.flip,
        num_draws=model.vision_model.num_blocks, shuffle_block=recipe.shuffle_block,
    )  # fmt: skip
    ours, in_parts, whole = [], [], []
    started = 0.0

    def batch_in_parts(step: int, size: int) -> list[tuple[torch.Tensor, ...]]:
        batch = loader.batch(step)
        ids = sorted(tokenizer.ids(batch.texts), key=len)  # which text goes with which image costs nothing
        return [
            (to_pixels(batch.images[rows]), batch.draws[rows], *pad(ids[rows], tokenizer.pad_id))
            for rows in (slice(start, start + size) for start in range(0, len(ids), size))
        ]

    def log(_: dict[str, float], step: int) -> None:
        nonlocal started
        spent = time.process_time() - started
        for seconds, size in ((in_parts, CPU_PART), (whole, recipe.batch_size)):
            parts = batch_in_parts(step - 1, size)
            model.zero_grad(set_to_none=True)
            took = cpu_s(lambda parts=parts: bare(model, parts))
            model.zero_grad(set_to_none=True)
            if 1 < step < NUM_STEPS:
                seconds.append(took)
        if 1 < step < NUM_STEPS:
            ours.append(spent)
        started = time.process_time()

    train(
        state, recipe, Ranks(0, 1, torch.device("cpu")), train_samples=samples, val_samples=None, tokenizer=tokenizer,
        folder=CheckpointFolder(world.root / "checkpoints", keep=1), log=log,
    )  # fmt: skip
    return [
        compare(
            f"training step, batch {recipe.batch_size}", f"bare forward + backward, {name}", "pairs / CPU s",
            items=recipe.batch_size, ours_s=ours, theirs_s=theirs,
        )
        for name, theirs in ((f"in our parts of {CPU_PART}", in_parts), ("the batch at once", whole))
    ]  # fmt: skip
