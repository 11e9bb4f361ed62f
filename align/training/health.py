"""What is measured of a run while it trains, with a warning when a sign leaves its bounds, and a line when it is back.

None stops the run: people decide. (A loss that is not finite does end the run, see `align.training.state`.)
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

from align.display.console import say

#: Lowest and highest temperature; the paper's starts at 1.0 and ends near 1/64 = 0.016.
TEMPERATURE = (0.005, 2.0)
#: A relative change of the temperature below the first over so many steps counts as stuck.
TEMPERATURE_MOVES, STUCK_STEPS = 1e-4, 200
#: Norm of the gradients, as a multiple of its median.
GRADIENT_NORM_JUMP = 20
#: Effective rank of the validation images' embeddings, as a share of the way from 1 to what is possible; below it they
#: collapse.
MIN_EFFECTIVE_RANK_SHARE = 0.05
#: Mean of 1 - cosine between an image's embeddings by batch statistics and by running ones.
MAX_BATCH_NORM_GAP = 0.2
#: Share of the time that steps wait for the loader.
MAX_LOADER_WAIT_SHARE = 0.05
#: The median is over the gradient norms of so many steps, and is used once it has so many.
_NORMS, _ENOUGH_NORMS = 100, 20
#: The sign that is about the machine's speed; all others are about the model.
_LOADER = "loader wait share"


class Health:
    """Watches one run. `alarms` has what is out of its bounds now: name of the sign -> warning."""

    def __init__(self, section: str, *, learns_temperature: bool = True) -> None:
        self.alarms: dict[str, str] = {}
        self._were_bad: set[str] = set()
        self._section, self._learns_temperature = section, learns_temperature
        self._norms: deque[float] = deque(maxlen=_NORMS)
        self._temperatures: deque[float] = deque(maxlen=STUCK_STEPS + 1)

    def step(self, step: int, *, temperature: float, gradient_norm: float) -> None:
        """Checks the values of one step."""
        low, high = TEMPERATURE
        self._judge(step, "temperature", temperature, not low <= temperature <= high, f"not in [{low:g}, {high:g}]")
        self._temperatures.append(temperature)
        if self._learns_temperature and len(self._temperatures) > STUCK_STEPS:
            lowest, highest = min(self._temperatures), max(self._temperatures)
            moved = highest / lowest - 1 if lowest > 0 else 0.0
            words = f"in {STUCK_STEPS} steps: it is stuck"
            self._judge(step, "change of the temperature", moved, moved < TEMPERATURE_MOVES, words)
        if len(self._norms) >= _ENOUGH_NORMS:
            bound = GRADIENT_NORM_JUMP * statistics.median(self._norms)
            self._judge(step, "gradient norm", gradient_norm, gradient_norm > bound, f"above {bound:.3g}")
        self._norms.append(gradient_norm)

    def row(self, step: int, row: Mapping[str, float], possible_rank: int) -> None:
        """Checks those metrics of a row that have a bound; `possible_rank` is that of the embeddings measured."""
        rank, gap = row.get("val/effective_rank"), row.get("val/batch_norm_gap")
        if rank is not None:
            bound = 1 + MIN_EFFECTIVE_RANK_SHARE * (possible_rank - 1)
            words = f"below {bound:.3g} of {possible_rank}: the embeddings collapse"
            self._judge(step, "effective rank", rank, rank < bound, words)
        if gap is not None:
            words = f"above {MAX_BATCH_NORM_GAP:g}: batch-norm's running statistics do not fit"
            self._judge(step, "batch-norm gap", gap, gap > MAX_BATCH_NORM_GAP, words)
        if (wait := row.get("train/loader_wait_share")) is not None:
            words = f"above {MAX_LOADER_WAIT_SHARE:g}: use more threads (num_threads), or images nearer to their size"
            self._judge(step, _LOADER, wait, wait > MAX_LOADER_WAIT_SHARE, words)

    def of_the_model(self) -> dict[str, float]:
        """How many signs of the model are out of their bounds, and 1 for each that is, 0 for each that was, by name."""
        signs = {f"train/alarm/{sign}": float(sign in self.alarms) for sign in sorted(self._were_bad - {_LOADER})}
        return {"train/alarms": sum(signs.values()), **signs}

    def _judge(self, step: int, sign: str, value: float, bad: bool, bound: str) -> None:
        if bad and sign not in self.alarms:
            self._were_bad.add(sign)
            self.alarms[sign] = f"{sign} {value:.4g}, {bound}"
            say(f"{self._section}: warning: step {step:,}: {self.alarms[sign]}")
        elif not bad and sign in self.alarms:
            del self.alarms[sign]
            say(f"{self._section}: step {step:,}: {sign} {value:.4g} is within its bounds again")
