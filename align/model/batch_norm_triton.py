"""The kernels of `align.model.normalisation` for CUDA; that module says what each computes, `triton_kernels` how.

They read maps as channels-last. A map in another layout is copied into that one, and the result back.
"""

# ruff: noqa: PLR0913  # the operations' arguments
# mypy: disable-error-code="no-untyped-call"
# fmt: off

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from align.model import triton_kernels as code

#: Elements of a tile: 16 for each thread of the 4 warps.
_TILE = 2048
#: The most programs that share a sample's rows; fewer rows than `_LEAST_ROWS` are not worth a program.
_MOST_PARTS, _LEAST_ROWS = 16, 256
#: Parts and channels of a tile of `group_moments`.
_PARTS, _PART_COLUMNS = 64, 32
#: Options of each launch. They say whether products and sums are fused, since Triton 3.10 and 3.9 differ in the
#: default.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


class _Plan(NamedTuple):
    """How programs divide a map.

    Attributes:
        grid: programs along rows and along channels.
        sizes: rows of a sample, its channels as a number of units, rows of a program, and programs of a sample's rows.
        tile: channels of a unit, rows and channels of a tile, and Triton's options.
    """

    grid: tuple[int, int]
    sizes: tuple[int, int, int, int]
    tile: dict[str, int]


def _plan(x: Tensor) -> _Plan:
    rows, columns = x.shape[2] * x.shape[3], x.shape[1]
    width = min((64, 32), key=lambda width: triton.cdiv(columns, width) * width)  # the first of equal ones
    height, unit = _TILE // width, min(16, columns & -columns)
    parts = min(_MOST_PARTS, max(1, rows // _LEAST_ROWS))
    span = triton.cdiv(triton.cdiv(rows, parts), height) * height
    parts = triton.cdiv(rows, span)
    return _Plan(
        (len(x) * parts, triton.cdiv(columns, width)), (rows, columns // unit, span, parts),
        {"UNIT": unit, "ROWS": height, "COLUMNS": width, **_OPTIONS},
    )


def _rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _as(result: Tensor, x: Tensor) -> Tensor:
    """The result in the layout of x, as every kernel of the operation gives it."""
    return result if x.is_contiguous(memory_format=torch.channels_last) else torch.empty_like(x).copy_(result)


def _known(*vectors: Tensor) -> tuple[Tensor, ...]:
    """Moments, weight and bias, as kernels read them."""
    return tuple(vector.contiguous() for vector in vectors)


def _over(x: Tensor, count: int) -> int:
    """The number of samples divided by that of groups, or the reverse. Kernels rely on equal groups."""
    if len(x) % count:
        raise ValueError(f"a batch of {len(x)} cannot be divided by {count}")
    return len(x) // count


def _kind(factor: Tensor | None) -> int:
    return 0 if factor is None else 2 if factor.ndim == 2 and factor.shape[1] > 1 else 1


def _moments(x: Tensor, plan: _Plan, group: int, eps: float) -> tuple[Tensor, Tensor]:
    columns, groups = x.shape[1], _over(x, group)
    means, squares = x.new_empty(2, plan.grid[0], columns, dtype=torch.float32)
    mean, inverse = (x.new_empty(groups, columns, dtype=torch.float32) for _ in range(2))
    code.part_moments[plan.grid](x, means, squares, *plan.sizes, **plan.tile)
    rows, _, span, parts = plan.sizes
    code.group_moments[groups, triton.cdiv(columns, _PART_COLUMNS)](
        means, squares, mean, inverse, eps, float(rows * group), rows, columns, span, parts, group, PARTS=_PARTS,
        COLUMNS=_PART_COLUMNS, **_OPTIONS,
    )
    return mean, inverse


def _write(
    x: Tensor, plan: _Plan, known: tuple[Tensor, ...], factor: Tensor | None, residual: Tensor | None, silu: bool
) -> Tensor:
    out = torch.empty_like(x)
    code.values[plan.grid](
        x, *known, None if factor is None else factor.contiguous(), None if residual is None else _rows(residual), out,
        *plan.sizes, _over(x, len(known[0])), SILU=silu, FACTOR=_kind(factor), RESIDUAL=residual is not None,
        **plan.tile,
    )
    return out


def _sums(grad: Tensor | None, x: Tensor, plan: _Plan, known: tuple[Tensor, ...], share: float) -> Tensor:
    parts = plan.sizes[-1]
    out = x.new_empty(len(x) * parts, x.shape[1], dtype=torch.float32)
    code.part_sums[plan.grid](
        None if grad is None else _rows(grad), x, *known, out, share, *plan.sizes, _over(x, len(known[0])),
        GRAD=grad is not None, **plan.tile,
    )
    return out if parts == 1 else out.view(len(x), parts, -1).sum(1)


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, residual: Tensor | None, group: int, eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `align.model.normalisation.normalise`."""
    with torch.cuda.device_of(x):
        rows, plan = _rows(x), _plan(x)
        mean, inverse = _moments(rows, plan, group, eps)
        out = _write(rows, plan, _known(mean, inverse, weight, bias), keep, residual, silu)
        return _as(out, x), mean, inverse


def normalise_pooled(x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `align.model.normalisation.normalise_pooled`."""
    with torch.cuda.device_of(x):
        rows, plan = _rows(x), _plan(x)
        mean, inverse = _moments(rows, plan, group, eps)
        return _sums(None, rows, plan, _known(mean, inverse, weight, bias), 1.0 / plan.sizes[0]), mean, inverse


def activated(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None) -> Tensor:
    """See `align.model.normalisation.activated`."""
    with torch.cuda.device_of(x):
        return _as(_write(_rows(x), _plan(x), _known(mean, inverse, weight, bias), gate, None, True), x)


def gate_gradient(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `align.model.normalisation.gate_gradient`."""
    with torch.cuda.device_of(x):
        return _sums(grad, _rows(x), _plan(x), _known(mean, inverse, weight, bias), 1.0)


def normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    shift: Tensor | None, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `align.model.normalisation.normalise_backward`."""
    with torch.cuda.device_of(x):
        rows, plan, groups = _rows(x), _plan(x), len(mean)
        known = (
            _rows(grad), rows, *_known(mean, inverse, weight, bias), None if scale is None else scale.contiguous(),
            None if shift is None else shift.contiguous(),
        )
        group, flags = _over(x, groups), {"SILU": silu, "FACTOR": _kind(scale), "SHIFT": _kind(shift)}
        parts = x.new_empty(2, plan.grid[0], x.shape[1], dtype=torch.float32)
        code.gradient_sums[plan.grid](*known, *parts, *plan.sizes, group, **flags, **plan.tile)
        plain, weighted = parts.unflatten(1, (groups, -1)).sum(2)
        out, share = torch.empty_like(rows), 1.0 / (group * plan.sizes[0])
        code.gradient_values[plan.grid](*known, plain, weighted, out, share, *plan.sizes, group, **flags, **plan.tile)
        return _as(out, x), weighted.sum(0).to(weight.dtype), plain.sum(0).to(bias.dtype)
