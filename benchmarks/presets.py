"""The two shapes of the dual encoder that training is measured with, and what their steps need, held in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from align.config.model import ModelConfig
from align.config.recipe import PretrainConfig
from align.formats.shards import read_manifest
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training.batches.batch import Augmentation, Sampling, Workers
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from benchmarks.world import World

#: Name -> what differs from params.yaml, which is the demo: the paper's smallest published shapes (6.1), at the demo's
#: 64 px, so that two cores can; larger pictures would only make what is not the towers weigh less.
PRESETS: dict[str, dict[str, object]] = {
    "demo": {},
    "B0-Mini": {"image_tower": "B0", "text_tower": "Mini", "embed_width": 640},
}


@dataclass(frozen=True)
class Preset:
    name: str
    config: ModelConfig
    tokenizer: TextTokenizer
    samples: SplitSamples

    def model(self) -> DualEncoder:
        """The same weights each time."""
        torch.manual_seed(0)
        return DualEncoder(self.config, self.tokenizer.vocab_size).train()

    def loader(self, recipe: PretrainConfig) -> TrainLoader:
        """The batches that `train` sees by the recipe, but for phrase dropout."""
        return TrainLoader(
            self.samples, sampling=Sampling(recipe.seed, recipe.batch_size),
            augmentation=Augmentation(self.config.image_px, self.model().vision_model.num_blocks, recipe.flip),
            workers=Workers(num_threads=1),
        )  # fmt: skip


def preset(world: World, name: str) -> Preset:
    """On the shards of the sample, whose pictures and texts are read into memory."""
    config = world.params.section(ModelConfig).model_copy(update=PRESETS[name])
    samples = SplitSamples(SplitIndex.of(world.shards, read_manifest(world.shards), "train"), config.resize_px)
    for sample in range(samples.num_images):
        samples.image(sample), samples.texts(sample)
    return Preset(name, config, TextTokenizer.load(world.tokenizer, config.max_tokens), samples)


def recipe(world: World, **values: object) -> PretrainConfig:
    """params.yaml's with other values; nothing is validated or kept before the end unless they say so."""
    num_steps = values["num_steps"]
    quiet = {
        "warmup_steps": 1, "log_every_steps": 1, "validate_every_steps": num_steps, "checkpoint_every_steps": num_steps,
    }  # fmt: skip
    return world.params.section(PretrainConfig).model_copy(update=quiet | values)


def encode(model: DualEncoder, parts: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(B, D) of both towers, part by part: pixels, draws, ids, mask."""
    return (
        torch.cat([model.encode_image(pixels, draws) for pixels, draws, _, _ in parts]),
        torch.cat([model.encode_text(ids, mask) for _, _, ids, mask in parts]),
    )
