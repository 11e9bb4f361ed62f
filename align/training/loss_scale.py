"""Dynamic loss scaling for float16, whose smallest numbers are larger than many a gradient.

The loss is multiplied before the backward pass and the gradients are divided after it, in float32. A step whose
gradients are not finite went beyond float16's largest number: it is left out, with a count, and the scale halves. It
still is a step of the schedule and of the data's order.

Decision: forty lines of our own in place of `torch.amp.GradScaler`, whose constants these are. It decides by each
rank's own gradients and knows no shards; here the norm of all gradients decides, which is computed anyway and is the
same on every rank. Scales are powers of two, so multiplying and dividing changes no bit of a gradient that float16
holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from align.errors import NonFiniteLossError

#: The scale at the start.
INITIAL = 2.0**16
#: It doubles after so many steps in a row without an overflow.
GROWTH_STEPS = 2000


@dataclass
class LossScale:
    """What the loss is multiplied with.

    Attributes:
        value: the scale, a power of two.
        good_steps: in a row, since it changed.
        skipped: steps left out since the last row of metrics.
    """

    value: float = INITIAL
    good_steps: int = 0
    skipped: int = 0

    def update(self, gradient_norm: float) -> bool:
        """Takes in a step's gradients; returns whether they are finite, and the step may be made.

        Raises:
            NonFiniteLossError: they are not, though nothing was scaled up.
        """
        if math.isfinite(gradient_norm):
            self.good_steps += 1
            if self.good_steps == GROWTH_STEPS:
                self.value, self.good_steps = 2 * self.value, 0
            return True
        if self.value <= 1.0:
            raise NonFiniteLossError(f"the gradients' norm is {gradient_norm} with a loss scale of {self.value:g}")
        self.value, self.good_steps, self.skipped = self.value / 2, 0, self.skipped + 1
        return False
