"""LAMB (You et al., 2020) and ALIGN's schedule (paper section 5): linear warm-up, linear decay to 0.

Decisions, where the papers are silent or implementations differ: betas 0.9 and 0.999, eps 1e-6, bias correction on, the
trust ratio |w| / |update| unclipped and 1 where either norm is 0. Parameters of at most one dimension (biases, norm
scales, the temperature) take plain Adam steps: no weight decay, no trust ratio, as the reference implementations do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Lamb(Optimizer):
    """LAMB over parameter groups; a group with `adapt` False takes Adam steps without decay.

    Args:
        groups: dicts with `params`, `adapt` (bool), and optionally `lr_scale`, a factor on the learning rate.
        weight_decay: decoupled, inside the trust ratio; paper 1e-5.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        defaults = {"lr": 0.0, "lr_scale": 1.0, "adapt": True, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__(groups, defaults)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets every group's rate, times its `lr_scale`."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            params: list[Tensor] = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            grads = [param.grad for param in params]
            for param in params:
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                state["step"] += 1
            self._update(group, params, [grad for grad in grads if grad is not None])

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        first_beta, second_beta = group["betas"]
        step = self.state[params[0]]["step"]
        means = [self.state[param]["exp_avg"] for param in params]
        squares = [self.state[param]["exp_avg_sq"] for param in params]
        torch._foreach_lerp_(means, grads, 1.0 - first_beta)
        torch._foreach_mul_(squares, second_beta)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - second_beta)
        scale = torch._foreach_sqrt(squares)
        torch._foreach_div_(scale, (1.0 - second_beta**step) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        updates = torch._foreach_div(means, scale)
        torch._foreach_div_(updates, 1.0 - first_beta**step)
        if not group["adapt"]:
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            return
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        for param, update, size, change in zip(
            params, updates, torch._foreach_norm(params), torch._foreach_norm(updates), strict=True
        ):
            ratio = torch.where((size > 0) & (change > 0), size / change, torch.ones_like(size))
            param.sub_(update * (ratio * group["lr"]))


def parameter_groups(model: nn.Module, text_learning_rate_scale: float) -> list[dict[str, Any]]:
    """Groups by tower (a post-norm BERT wants a smaller rate than the image tower in a short run) and by adaptation."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, param in model.named_parameters():
        groups.setdefault((name.startswith("text_"), param.ndim > 1), []).append(param)
    return [
        {"params": params, "adapt": adapt, "lr_scale": text_learning_rate_scale if text else 1.0}
        for (text, adapt), params in sorted(groups.items())
    ]


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, num_steps: int) -> float:
    """Learning rate of the update after `step` completed ones: linear to `peak`, then linear to 0 at `num_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (num_steps - step) / max(1, num_steps - warmup_steps)
