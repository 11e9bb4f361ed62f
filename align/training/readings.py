"""What the host learns of a step, one step later, so that it never waits for a device that still computes.

A step leaves its loss, the norm of its gradients and the temperature as one tensor on the device, and its vote on
ending as one message among the ranks. Both are read when the next step has been started: by then they are there, and
the device has work.

What a delay of one step means for a loss that is not finite: the update of that step, and the start of the next one,
have happened in memory. They leave no trace. Whatever outlasts a step (a row, validation, a checkpoint, the end of the
run) waits for the values of every step before it, and a step whose loss or norm is not finite ends the run there. So no
checkpoint holds a model of such a step, and the error names the step at which it began. With float16 the norm decides
whether the update happens at all, so it is read before it, once a step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.errors import NonFiniteLossError
from align.training.ranks.process_group import Ranks


class Reading(NamedTuple):
    """What a step did.

    Attributes:
        step: whole steps done with it.
        rate: the learning rate of its update.
        loss: of the global batch.
        norm: of the gradients before clipping.
        temperature: after the update.
    """

    step: int
    rate: float
    loss: float
    norm: float
    temperature: float


class Pending:
    """The values of a step that has been started; they arrive on the host without its waiting.

    Args:
        step: whole steps done with it.
        rate: the learning rate of its update.
        values: the tensors of its loss, norm, and temperature before and after the update.
        may_overflow: a norm that is not finite is no error: the step was left out.
    """

    def __init__(self, step: int, rate: float, values: tuple[Tensor, ...], *, may_overflow: bool = False) -> None:
        self.step = step
        self._rate, self._may_overflow = rate, may_overflow
        self._values = OnItsWay(torch.stack([value.detach().float() for value in values]))

    def read(self) -> Reading:
        """The values.

        Raises:
            NonFiniteLossError: the loss or the norm is inf or NaN.
        """
        loss, norm, before, after = self._values.arrived()
        wrong = f"the loss is {loss}" if not math.isfinite(loss) else None
        if wrong is None and not math.isfinite(norm) and not self._may_overflow:
            wrong = f"the norm of the gradients is {norm}"
        if wrong is not None:
            raise diverged(wrong, self.step, self._rate, before)
        return Reading(self.step, self._rate, loss, norm, after)


def diverged(what: str, step: int, rate: float, temperature: float) -> NonFiniteLossError:
    """The error that ends a run."""
    return NonFiniteLossError(
        f"{what} at step {step} (learning rate {rate:.3g}, temperature {temperature:.3g}); lower the learning rate; "
        "earlier checkpoints are kept"
    )


class Vote:
    """Whether any rank says yes, by a message that nobody waits for until `result`."""

    def __init__(self, flag: bool, ranks: Ranks) -> None:
        self._flag = flag
        self._message: Any = None
        self._greatest: OnItsWay | None = None
        if ranks.world_size == 1:
            return
        tensor = torch.full((1,), float(flag), device=ranks.device)  # a kernel: the host waits for no copy
        self._message = ranks.start_max(tensor)
        if ranks.device.type == "cuda":
            self._message.wait()  # of the device, not of the host
        self._greatest = OnItsWay(tensor)

    def result(self) -> bool:
        """The same on all ranks."""
        if self._greatest is None:
            return self._flag
        self._message.wait()
        return self._greatest.arrived()[0] > 0


class OnItsWay:
    """A small tensor that is copied to the host while the host does something else."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
            self._event.record()

    def arrived(self) -> list[float]:
        """Its values; waits for the copy, and for no later work of the device."""
        if self._event is not None:
            self._event.synchronize()
        values: list[float] = self._host.tolist()
        return values
