"""Whether what is equal on a CPU is equal on the device: each check gives a figure, and the bound that it must keep.

A check that fails does not stop the others. One that this machine cannot make says why. References are dense formulas,
NumPy or autograd in float64 on the CPU, or the same code in another setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from align.training.acceleration import triton_lacks
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import card_lost, in_a_line, out_of_memory
from benchmarks.gpu.scale import Scale

#: Seconds that a check should find left; later ones are left out.
_LEAST_S = 2.0


class Found(NamedTuple):
    """A check's figure: the largest error, or a count; it passes if it is at most `bound`."""

    value: float
    bound: float
    what: str = "largest relative error"


class NotPossibleError(Exception):
    """This machine cannot make the check; the message says why."""


@dataclass(frozen=True)
class Check:
    name: str
    make: Callable[[Scale], Found]


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| of whole tensors, in float64; infinite where what is found is not finite."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def furthest(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest `relative` of pairs of tensors."""
    return max(relative(found, expected) for found, expected in pairs)


def on_cuda(scale: Scale, what: str) -> None:
    """Raises NotPossibleError on a CPU."""
    if scale.stand_in:
        raise NotPossibleError(what)


def with_compiler() -> None:
    """Raises NotPossibleError where Triton cannot compile: training runs there too, slower, after a warning."""
    if lacking := triton_lacks():
        raise NotPossibleError(f"missing here: {' and '.join(lacking)}")


def all_checks() -> list[Check]:
    """In the order in which they are made; the cheap ones first."""
    from benchmarks.gpu import operation_checks, run_checks, step_checks

    return [*operation_checks.CHECKS, *step_checks.CHECKS, *run_checks.CHECKS]


def make(checks: Iterable[Check], scale: Scale, journal: Journal, done: frozenset[str] = frozenset()) -> None:
    """Makes the checks that are not done yet, and writes each result at once."""
    for check in checks:
        if check.name in done:
            continue
        if journal.left_s() < _LEAST_S:
            journal.check(check.name, "not possible here", "no time was left for it")
            continue
        journal.begin(check.name)
        _make(check, scale, journal)


def _make(check: Check, scale: Scale, journal: Journal) -> None:
    torch.manual_seed(0)
    try:
        found = check.make(scale)
    except NotPossibleError as why:
        journal.check(check.name, "not possible here", str(why))
    except Exception as error:  # whatever it is, the other checks are made, and the page says it
        if card_lost(error):
            raise  # the others are made in a new process, see `sections`
        if out_of_memory(error):
            journal.check(check.name, "not possible here", "too little memory on the device")
        else:
            journal.check(check.name, "failed", in_a_line(error))
    else:
        verdict = "passed" if found.value <= found.bound else "failed"
        journal.check(check.name, verdict, f"{found.what} {number(found.value)}", number(found.bound))
