"""Dynamic loss scaling for float16, whose smallest numbers are larger than many gradients.

The loss is multiplied before the backward pass, and the gradients are divided after it, in float32. If the gradients of
a step are not finite, they exceeded float16's largest number: the step is skipped and counted, and the scale halves.
The skipped step still counts in the schedule and in the order of the data.

Decision: our own forty lines instead of `torch.amp.GradScaler`, with its constants. GradScaler decides by each rank's
own gradients and does not support shards; here the norm of all gradients decides, which is computed anyway and equal
on every rank. Scales are powers of two, so multiplying and dividing changes no bit of a gradient that float16 holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from align.errors import NonFiniteLossError

#: The scale at the start.
INITIAL = 2.0**16
#: It doubles after this many steps in a row without an overflow.
GROWTH_STEPS = 2000


@dataclass
class LossScale:
    """The factor on the loss.

    Attributes:
        value: the scale, a power of two.
        good_steps: steps without an overflow since it changed.
        skipped: steps skipped since the last row of metrics.
    """

    value: float = INITIAL
    good_steps: int = 0
    skipped: int = 0

    def update(self, gradient_norm: float) -> bool:
        """Updates the scale after a step; returns whether its gradients are finite, so that the step may be applied.

        Raises:
            NonFiniteLossError: they are not finite although the scale is at most 1.
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
