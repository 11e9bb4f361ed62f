"""How large everything is: the paper's sizes on a card, tiny ones in its stead on a machine without CUDA."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from align.config import load_params
from align.config.model import ModelConfig
from align.config.params import profile_overrides
from align.config.recipe import PretrainConfig
from tests.support import ROOT
from tests.support.training_data import MODEL

#: Profile -> the names of its towers, as tables say.
TOWERS = {"cc3m": "B3 + Mini", "coyo": "B7 + Base"}


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        device: that everything runs on.
        batches: sizes of the batches that steps are measured with, ascending.
        step_s: how long the steps of one batch size are measured, at least.
        loss_pairs: sizes of the batches that losses are measured with.
        product: side of the matrices that show the card's speed.
        fed: batch and number of steps of the run that a loader feeds.
    """

    device: torch.device
    batches: tuple[int, ...]
    step_s: float
    loss_pairs: tuple[int, ...]
    product: int
    fed: tuple[int, int]

    @property
    def stand_in(self) -> bool:
        return self.device.type == "cpu"

    def towers(self, profile: str) -> str:
        """Their name in tables."""
        return f"tiny ones for {TOWERS[profile]}" if self.stand_in else TOWERS[profile]

    def model(self, profile: str) -> ModelConfig:
        """The towers of a profile at the paper's size, or tiny ones."""
        if self.stand_in:
            return MODEL
        return load_params(ROOT / "params.yaml", profile_overrides(profile, ROOT)).section(ModelConfig)

    def recipe(self, profile: str, **changes: object) -> PretrainConfig:
        """A profile's recipe on one device, without its division of a batch."""
        recipe = load_params(ROOT / "params.yaml", profile_overrides(profile, ROOT)).section(PretrainConfig)
        plain = {
            "micro_batch": None, "gradient_checkpointing": "none", "compile": False, "precision": "bfloat16",
            "num_processes": 1, "shard_weights": False,
        }  # fmt: skip
        return recipe.model_copy(update=plain | changes)


def scale(stand_in: bool) -> Scale:
    """The sizes for a card, or for a CPU in its stead."""
    if stand_in:
        return Scale(torch.device("cpu"), (8, 16), 0.0, (256,), 128, (8, 6))
    batches = (64, 128, 256, 512, 1024)
    return Scale(torch.device("cuda", 0), batches, 1.5, (4096, 16_384, 32_768), 8192, (256, 24))
