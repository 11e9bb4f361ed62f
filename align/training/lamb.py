"""LAMB (You et al., 2020), the paper's optimiser (section 5); without its trust ratio it is AdamW.

With `align.training.muon` the matrices of layers take its updates, under the same trust ratio.

Decisions, where the papers are silent or implementations differ: bias correction on, the trust ratio |w| / |update|
unclipped and 1 if either norm is 0. Parameters of at most one dimension (biases, norm scales, the temperature) take
plain Adam steps: no weight decay, no trust ratio, as in the reference implementations. Their step is absolute, while a
matrix's step is relative to its weights, so the recipe has a factor for their rate.

The trust ratio is that of whole parameters, even if each rank holds only some rows (`align.training.ranks.sharding`).
The updates lie in pieces of memory (`align.training.ranks.buckets`), so that the trust ratios multiply a piece at a
time: the number of kernels grows with the bytes of a model, and not with the number of its parameters.

Shapes: apart from the parameters' norms, all arithmetic is element-wise. Suffix A: one number per adapted parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.config.recipe import Recipe
from align.training.muon import layer_matrices, muon_updates
from align.training.ranks.buckets import buckets, in_one_piece
from align.training.ranks.sharding import local, norms

#: Of the memory that one multiplication by trust ratios goes over.
PIECE_BYTES = 64 << 20


class Lamb(Optimizer):
    """LAMB over parameter groups. One with `adapt` False takes steps of AdamW, one with `muon` has Muon's updates.

    Args:
        groups: dicts with `params`, and optionally `adapt`, `muon`, `weight_decay`, `lr_scale`, a factor on the
            learning rate, and `late`: what a first phase does not train (`align.training.words`).
        weight_decay: decoupled, inside the trust ratio; paper 1e-5.
        betas: decay of the running mean and of the running square of the gradients.
        eps: added to the root of the running square.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, weight_decay: float, betas: tuple[float, float], eps: float = 1e-6
    ) -> None:
        defaults = {"lr": 0.0, "lr_scale": 1.0, "adapt": True, "muon": False, "late": False}
        super().__init__(groups, defaults | {"weight_decay": weight_decay, "betas": betas, "eps": eps})

    def set_learning_rate(self, learning_rate: float, late: float | None = None) -> None:
        """Sets every group's rate, times its `lr_scale`; `late` is that of late groups, None: the same."""
        for group in self.param_groups:
            group["lr"] = (late if group["late"] and late is not None else learning_rate) * group["lr_scale"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch has overloads
        """One update of all parameters that have a gradient."""
        pieces: list[_Piece] = []
        for group in self.param_groups:
            params: list[Tensor] = [param for param in group["params"] if param.grad is not None]
            for param in params:
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param)
                    if not group["muon"]:
                        state["exp_avg_sq"] = torch.zeros_like(param)
                state["step"] += 1
            for some in buckets(params, PIECE_BYTES):
                piece = self._updates(group, some)
                if group["adapt"]:
                    pieces.append(piece)
                else:
                    torch._foreach_add_(piece.weights, piece.updates, alpha=-group["lr"])
        if not pieces:
            return
        params = [param for piece in pieces for param in piece.params]
        weights = [weight for piece in pieces for weight in piece.weights]
        updates = [update for piece in pieces for update in piece.updates]
        weight_norms_A, update_norms_A = norms(weights + updates, params + params).chunk(2)
        both = (weight_norms_A > 0) & (update_norms_A > 0)
        ratios_A = torch.where(both, weight_norms_A / update_norms_A, torch.ones_like(weight_norms_A))
        counts = [len(piece.params) for piece in pieces]
        for piece, own_A in zip(pieces, torch.split(ratios_A, counts), strict=True):
            factors_A = (own_A * piece.rate).unbind()
            factors = [own.expand(update.numel()) for own, update in zip(factors_A, piece.updates, strict=True)]
            piece.memory.mul_(torch.cat(factors))
            torch._foreach_sub_(piece.weights, piece.updates)

    def _updates(self, group: dict[str, Any], params: list[Tensor]) -> _Piece:
        """The update of each parameter (this rank's rows) before trust ratio and rate."""
        (first_beta, second_beta), step = group["betas"], self.state[params[0]]["step"]
        weights = [local(param) for param in params]
        grads = [local(param.grad) for param in params if param.grad is not None]
        means = [local(self.state[param]["exp_avg"]) for param in params]
        memory, updates = in_one_piece(weights)
        if group["muon"]:
            torch._foreach_copy_(updates, muon_updates(grads, means, first_beta))
        else:
            squares = [local(self.state[param]["exp_avg_sq"]) for param in params]
            torch._foreach_lerp_(means, grads, 1.0 - first_beta)
            torch._foreach_mul_(squares, second_beta)
            torch._foreach_addcmul_(squares, grads, grads, 1.0 - second_beta)
            scale = torch._foreach_sqrt(squares)
            torch._foreach_div_(scale, (1.0 - second_beta**step) ** 0.5)
            torch._foreach_add_(scale, group["eps"])
            torch._foreach_copy_(updates, means)
            torch._foreach_div_(updates, scale)
            torch._foreach_div_(updates, 1.0 - first_beta**step)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return _Piece(params, weights, updates, memory, group["lr"])


class _Piece(NamedTuple):
    """Parameters whose updates are views of one piece of `memory`; `weights` and `updates` are this rank's rows."""

    params: list[Tensor]
    weights: list[Tensor]
    updates: list[Tensor]
    memory: Tensor
    rate: float


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups the parameters that are trained by adaptation and rate.

    In a short run a post-norm BERT needs a smaller rate than the image tower; its embeddings, of which a batch changes
    few rows, do not. What a first phase does not train has groups of its own: its rate and number of steps differ.
    """
    muon = layer_matrices(model) if recipe.optimiser == "muon" else set()
    groups: dict[tuple[bool, bool, float, bool], list[Tensor]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:  # of a locked tower
            continue
        matrix = param.ndim > 1
        scale = 1.0 if matrix else recipe.vector_learning_rate_scale
        if name.startswith("text_") and not (matrix and ".embeddings." in name):
            scale *= recipe.text_learning_rate_scale
        late = recipe.num_words_steps > 0 and not name.startswith("vision_model.")
        groups.setdefault((matrix, param in muon, scale, late), []).append(param)
    return [
        {
            "params": params, "adapt": matrix and recipe.optimiser != "adamw", "muon": by_muon, "lr_scale": scale,
            "weight_decay": recipe.weight_decay if matrix else 0.0, "late": late,
        }
        for (matrix, by_muon, scale, late), params in sorted(groups.items(), key=lambda item: item[0])
    ]  # fmt: skip
