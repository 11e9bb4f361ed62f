"""Signs of a training run's health, with a warning when one leaves its bounds (`health` in params.yaml).

Each excursion gives one warning, and one line when the value is within its bounds again. None stops the run: people
decide. (A loss that is not finite does end the run, see `align.training.step`.)
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from align.config.infrastructure import HealthConfig
from align.display.console import say

#: The median is over the gradient norms of this many steps ...
_NORMS = 100
#: ... and is used once it has this many.
_ENOUGH_NORMS = 20

_WAIT = "train/loader_wait_share"
#: The sign that is about the machine's speed; all others are about the model.
_LOADER = "loader wait share"


class Health:
    """Watches one run. The leading rank calls it for each step and each row of metrics.

    Attributes:
        alarms: what is out of its bounds now: name of the sign -> warning.
    """

    def __init__(self, config: HealthConfig, section: str) -> None:
        self.alarms: dict[str, str] = {}
        self._config, self._section = config, section
        self._norms: deque[float] = deque(maxlen=_NORMS)
        self._temperatures: deque[float] = deque(maxlen=config.stuck_steps + 1)

    def step(self, step: int, *, temperature: float, gradient_norm: float) -> None:
        """Checks the values of one step."""
        config = self._config
        if config.temperature is not None:
            low, high = config.temperature
            self._judge(step, "temperature", temperature, not low <= temperature <= high, f"not in [{low:g}, {high:g}]")
        self._temperatures.append(temperature)
        if config.temperature_moves is not None and len(self._temperatures) > config.stuck_steps:
            lowest, highest = min(self._temperatures), max(self._temperatures)
            moved = highest / lowest - 1 if lowest > 0 else 0.0
            words = f"in {config.stuck_steps} steps: it is stuck"
            self._judge(step, "change of the temperature", moved, moved < config.temperature_moves, words)
        if config.gradient_norm_jump is not None and len(self._norms) >= _ENOUGH_NORMS:
            bound = config.gradient_norm_jump * statistics.median(self._norms)
            self._judge(step, "gradient norm", gradient_norm, gradient_norm > bound, f"above {bound:.3g}")
        self._norms.append(gradient_norm)

    def row(self, step: int, row: Mapping[str, float], embed_width: int) -> None:
        """Checks those metrics of a row that have a bound."""
        config = self._config
        rank, gap, wait = (row.get(name) for name in ("val/effective_rank", "val/batch_norm_gap", _WAIT))
        if rank is not None and config.min_effective_rank_share is not None:
            bound = config.min_effective_rank_share * embed_width
            words = f"below {bound:.3g} of {embed_width}: the embeddings collapse"
            self._judge(step, "effective rank", rank, rank < bound, words)
        if gap is not None and config.max_batch_norm_gap is not None:
            words = f"above {config.max_batch_norm_gap:g}: batch-norm's running statistics do not fit"
            self._judge(step, "batch-norm gap", gap, gap > config.max_batch_norm_gap, words)
        if wait is not None and config.max_loader_wait_share is not None:
            words = f"above {config.max_loader_wait_share:g}: use more loader processes or threads, or images nearer "
            words += "to their size"
            self._judge(step, _LOADER, wait, wait > config.max_loader_wait_share, words)

    def of_the_model(self) -> int:
        """How many signs of the model are out of their bounds: a machine that was busy says nothing about it."""
        return len(self.alarms.keys() - {_LOADER})

    def _judge(self, step: int, sign: str, value: float, bad: bool, bound: str) -> None:
        if bad and sign not in self.alarms:
            self.alarms[sign] = f"{sign} {value:.4g}, {bound}"
            say(f"{self._section}: warning: step {step:,}: {self.alarms[sign]}")
        elif not bad and sign in self.alarms:
            del self.alarms[sign]
            say(f"{self._section}: step {step:,}: {sign} {value:.4g} is within its bounds again")


def effective_rank(embeds_ND: Tensor) -> float:
    """The number of directions that embeddings (N, D) spread over: exp of the entropy of their covariance's spectrum.

    1 where all points are on a line or equal; at most min(N - 1, D). Roy and Vetterli (2007).
    """
    centred_ND = (embeds_ND - embeds_ND.mean(0)).double()
    num, width = centred_ND.shape
    gram = centred_ND.T @ centred_ND if width <= num else centred_ND @ centred_ND.T  # the smaller of (D, D), (N, N)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = float(values.sum())
    if total <= 1e-12 * num:
        return 1.0
    shares = values / total
    shares = shares[shares > 1e-12]
    return float((-(shares * shares.log()).sum()).exp())
