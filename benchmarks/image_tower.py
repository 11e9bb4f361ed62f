"""What the image tower of B7 + Base at the paper's 289 px costs a GPU, counted from shapes on the meta device.

256 pairs in groups of 16 samples, weights and maps in bfloat16, as autocast computes. `layer by layer` is the same
tower as torch's modules compute it, each group apart: what the project did before the operations were joined.

Operations are those that torch dispatches; views cost nothing and are left out. A dispatched operation reads its inputs
once and writes its results once, with the exceptions that `align.pipeline.cards` names. An operation of
`align.model.normalisation` counts as one. In Triton it moves what is counted, and a few per cent for the sums of parts;
it launches one to four kernels forward and five or more backward. Torch's kernels launch and move more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.model import Checkpointing, ModelConfig
from align.model.batch_norm import BatchNorm2d
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import ImageTower
from align.pipeline.cards import Work

PAIRS = 256
VOCAB_SIZE = 100_000

_HEAVY = frozenset({"convolution", "convolution_backward", "addmm", "mm", "empty", "new_empty", "empty_like"})


class Counts(Work):
    """Counts what is dispatched within it."""

    @property
    def moved_bytes(self) -> int:
        """Read and written."""
        return sum(moved for _, _, moved in self.done)

    @property
    def light_calls(self) -> int:
        """Batch-norm and element-wise operations: all but convolutions, products and allocations."""
        return sum(name not in _HEAVY for name, _, _ in self.done)


class Cost(NamedTuple):
    """Of one step's forward and backward pass; bytes are of a pair."""

    forward_calls: int
    light_calls: int
    moved_bytes: int


def cost(config: ModelConfig, what: Checkpointing, *, apart: bool = False, pairs: int = PAIRS) -> Cost:
    """Counts one forward and backward pass of the image tower.

    Args:
        config: the towers.
        what: see `ImageTower.gradient_checkpointing`.
        apart: layer by layer, each group by an operation of its own.
        pairs: samples of the batch.
    """
    with torch.device("meta"):
        tower = ImageTower(config).train().to(torch.bfloat16)
        if apart:
            _take_apart(tower)
        tower.gradient_checkpointing = what
        size = config.image_px
        pixels = torch.zeros(pairs, 3, size, size, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        with Counts() as forward:
            features = tower(pixels)
        grad = torch.ones_like(features)
        with Counts() as backward:
            features.backward(grad)
    return Cost(
        len(forward.done), forward.light_calls + backward.light_calls,
        (forward.moved_bytes + backward.moved_bytes) // pairs,
    )  # fmt: skip


class _Apart(nn.BatchNorm2d):
    group: int

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, parts = self.weight, self.bias, torch.split(x, self.group)
        return torch.cat([F.batch_norm(part, None, None, weight, bias, True, 0.0, self.eps) for part in parts])


def _take_apart(tower: ImageTower) -> None:
    for module in tower.modules():
        if isinstance(module, BatchNorm2d):
            group = module.group
            module.__class__ = _Apart  # type: ignore[assignment]  # a layer of its own, with the same parameters
            module.group = group


def kept_bytes(config: ModelConfig, what: Checkpointing, *, pairs: int = 32) -> int:
    """Bytes of both towers that a pair keeps for the backward pass; texts have the longest length."""
    kept: dict[int, tuple[object, int]] = {}  # by storage, each once; it is held, so that no id comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.device("meta"):
        model = DualEncoder(config, VOCAB_SIZE).train().to(torch.bfloat16)
        model.gradient_checkpointing = what
        own = {param.untyped_storage()._cdata for param in model.parameters()}
        pixels = torch.zeros(pairs, 3, config.image_px, config.image_px, dtype=torch.bfloat16)
        ids = torch.zeros(pairs, config.max_tokens, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results = model.encode_image(pixels), model.text_model(ids)
    assert all(each.requires_grad for each in results)
    return sum(size for key, (_, size) in kept.items() if key not in own) // pairs


def counted(config: ModelConfig) -> str:
    """The table, as Markdown."""
    lines = [
        f"| image tower, {config.image_px} px, {PAIRS} pairs, bfloat16 | kept a pair, both towers "
        "| operations, forward | batch-norm and element-wise, forward + backward | moved a pair |",
        "|---|---|---|---|---|",
    ]
    rows: list[tuple[str, Checkpointing, bool]] = [
        ("layer by layer, each group apart", "none", True), ("`none`", "none", False), ("`cheap`", "cheap", False),
        ("`blocks`", "blocks", False),
    ]  # fmt: skip
    for title, what, apart in rows:
        found = cost(config, what, apart=apart)
        kept = "" if apart else f"{kept_bytes(config, what) / 2**20:,.0f} MiB"
        moved = found.moved_bytes / 1e9
        lines.append(f"| {title} | {kept} | {found.forward_calls:,} | {found.light_calls:,} | {moved:.2f} GB |")
    return "\n".join(lines)
