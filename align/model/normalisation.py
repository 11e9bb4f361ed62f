"""Batch-norm's operations in training, as operations of torch with their backward passes; SiLU is a part of them.

Samples are normalised in groups, all groups by one operation. A map is read in place: nothing is split or concatenated.
Backward needs the map before normalisation and two numbers per group and channel; SiLU and what follows it are computed
again from them.

Each operation has two kernels. Those of `align.model.batch_norm_triton` are for CUDA, where Triton is installed. Those
here are for every other device, and define what the others compute. They call torch's own batch-norm kernel, group by
group, each call writing its rows of the result: on a CPU that was 1.4 to 5 times as fast as sums over a view of the
groups, and a group stays in the cache. Sums are in float32, or in float64 for float64, which has no kernel in Triton.

Shapes, as suffixes: B samples, G samples of a group, S = B / G groups, C channels, H and W the map.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from align.display.console import say


class Moments(NamedTuple):
    """Mean and 1 / standard deviation of each group: (S, C) each, in float32 or float64."""

    mean: Tensor
    inverse: Tensor


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, residual: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises and adds to the residual: residual + keep * act(weight * normal + bias).

    Args:
        x: (B, C, H, W).
        weight: (C,).
        bias: (C,).
        keep: (B,) factor of each sample; None: 1.
        residual: (B, C, H, W); None: 0.
        args: samples of a group, eps, and whether act is SiLU; otherwise it is the identity.

    Returns:
        (B, C, H, W) in the type of x, and the moments.
    """
    return cast(tuple[Tensor, Tensor, Tensor], _kernel("normalise", x)(x, weight, bias, keep, residual, *args))


def normalise_pooled(x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over each map of SiLU(weight * normal + bias), and the moments; the map itself is not written.

    Returns:
        (B, C) in float32 or float64, and the moments.
    """
    return cast(tuple[Tensor, Tensor, Tensor], _kernel("normalise_pooled", x)(x, weight, bias, group, eps))


def activated(x: Tensor, moments: Moments, weight: Tensor, bias: Tensor, gate: Tensor | None = None) -> Tensor:
    """gate * SiLU(weight * normal + bias) from moments that are known; `gate` is (B, C), or None for 1."""
    return cast(Tensor, _kernel("activated", x)(x, *moments, weight, bias, gate))


def gate_gradient(grad: Tensor, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C): the gradient of the gate of `activated`, the sum over each map of grad * SiLU(weight * normal + bias)."""
    return cast(Tensor, _kernel("gate_gradient", x)(grad, x, *moments, weight, bias))


def normalise_backward(
    grad: Tensor, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `normalise` for scale * grad + shift.

    Args:
        grad: (B, C, H, W).
        x: (B, C, H, W), what was normalised.
        moments: of its groups.
        weight: (C,).
        bias: (C,).
        args: `scale`, (B, C) or (B, 1) or None for 1; `shift`, (B, C) or None for 0; whether SiLU followed.

    Returns:
        Gradients of x, weight and bias.
    """
    kernel = _kernel("normalise_backward", x)
    return cast(tuple[Tensor, Tensor, Tensor], kernel(grad, x, *moments, weight, bias, *args))


def silu_is_dear(x: Tensor) -> bool:
    """Whether computing SiLU a second time costs more than reading it: on a CPU."""
    return x.device.type == "cpu" and _CHOICE.forced != "triton"


@contextmanager
def kernels(which: Literal["plain", "triton"]) -> Iterator[None]:
    """In this context every device computes with these kernels; for tests.

    `triton` on a CPU needs Triton's interpreter: TRITON_INTERPRET=1 before Triton is imported. If it fails, the plain
    kernels do not take over.

    Raises:
        ModuleNotFoundError: Triton is not installed.
    """
    if which == "triton" and _triton() is None:
        raise ModuleNotFoundError("batch-norm's kernels in Triton need Triton, which is not installed")
    before, _CHOICE.forced = _CHOICE.forced, which
    try:
        yield
    finally:
        _CHOICE.forced = before


class _Choice:
    """The state of kernels in this process: autograd's threads have to see it, too.

    Attributes:
        forced: see `kernels`.
        broken: whether Triton has failed.
    """

    forced: Literal["plain", "triton"] | None = None
    broken = False


_CHOICE = _Choice()


def _kernel(name: str, x: Tensor) -> Any:
    """On a CPU this is the function itself: torch's dispatcher would slow a step of small towers."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _PLAIN[name] if _CHOICE.forced != "triton" else functools.partial(_on_gpu, name)
    return getattr(torch.ops.align, name).default


@functools.cache
def _triton() -> Any:
    """The kernels in Triton; None if it is not installed."""
    try:
        from align.model import batch_norm_triton
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        return None
    return batch_norm_triton


def _on_gpu(name: str, *args: Any) -> Any:
    """Calls Triton's kernel if there is one; if it fails, warns once and calls the plain kernels from then on."""
    if _CHOICE.forced == "triton":
        return getattr(_triton(), name)(*args)
    if _CHOICE.forced is None and not _CHOICE.broken and args[0].dtype != torch.float64:
        try:
            if (module := _triton()) is not None:
                return getattr(module, name)(*args)
        except Exception as error:  # Triton, its compilers and its driver raise what they like
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
                raise  # the driver's own comes as a RuntimeError; a smaller batch may fit
            _CHOICE.broken = True
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            say(f"warning: batch-norm runs without Triton, slower, because it failed: {first}")
    plain: Any = _PLAIN[name]
    return plain(*args)  # no input has changed; a broken GPU fails again


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _parts(count: int, group: int) -> list[slice]:
    return [slice(start, start + group) for start in range(0, count, group)]


def _moments_like(x: Tensor, group: int) -> Moments:
    shape, kind = (len(x) // group, x.shape[1]), _exact(x[:0]).dtype
    return Moments(x.new_empty(shape, dtype=kind), x.new_empty(shape, dtype=kind))  # results may not share memory


def _normal(x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float, silu: bool) -> tuple[Tensor, Moments]:
    """act(weight * normal + bias) in float32 or float64, and the moments."""
    x, weight, bias = _exact(x), weight.to(_exact(x).dtype), bias.to(_exact(x).dtype)
    out, moments = torch.empty_like(x), _moments_like(x, group)
    for number, rows in enumerate(_parts(len(x), group)):
        results = out[rows], moments.mean[number], moments.inverse[number]
        torch.native_batch_norm(x[rows], weight, bias, None, None, True, 0.0, eps, out=results)
        if silu:
            F.silu(results[0], inplace=True)
    return out, moments


def _again(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight * normal + bias, in one pass."""
    x = _exact(x)
    slopes, offsets = (each[:, None] for each in _affine(mean, inverse, weight, bias))
    return torch.addcmul(offsets, x.view(len(mean), -1, *x.shape[1:]), slopes).flatten(0, 1)


def _affine(mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """weight * normal + bias as slope * x + offset: (S, C, 1, 1) each."""
    slope = weight * inverse
    return _per_map(slope), _per_map(torch.addcmul(bias.to(mean.dtype), mean, slope, value=-1))


def _per_map(numbers: Tensor) -> Tensor:
    """(..., C) -> (..., C, 1, 1)."""
    return numbers[..., None, None]


def _plain_normalise(  # noqa: PLR0913  # a kernel takes every tensor as an argument of its own, as do those below
    x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, residual: Tensor | None, group: int, eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, moments = _normal(x, weight, bias, group, eps, silu)
    if keep is not None:
        out.mul_(keep[:, None, None, None])
    if residual is not None:
        out.add_(residual)
    return out.to(x.dtype), *moments


def _plain_normalise_pooled(
    x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, moments = _normal(x, weight, bias, group, eps, True)
    return out.mean((2, 3)), *moments


def _plain_activated(
    x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None
) -> Tensor:
    out = F.silu(_again(x, mean, inverse, weight, bias), inplace=True)
    if gate is not None:
        out.mul_(_per_map(gate))
    return out.to(x.dtype)


def _plain_gate_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return F.silu(_again(x, mean, inverse, weight, bias), inplace=True).mul_(grad).sum((2, 3))


def _plain_normalise_backward(  # noqa: PLR0913  # see above
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
    shift: Tensor | None, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad, whole = _exact(grad), _exact(x)
    grad_x, factors = torch.empty_like(whole), weight.to(whole.dtype)
    grad_weight, grad_bias = whole.new_empty(2, len(mean), len(weight))
    slopes, offsets = _affine(mean, inverse, weight, bias)
    for number, rows in enumerate(_parts(len(x), len(x) // len(mean))):  # each group's part stays in the cache
        part = grad[rows]
        if scale is not None:
            factor = _per_map(scale[rows])
            part = part * factor if shift is None else torch.addcmul(_per_map(shift[rows]), part, factor)
        elif shift is not None:
            part = part + _per_map(shift[rows])
        if silu:
            normal = torch.addcmul(offsets[number], whole[rows], slopes[number])
            part = torch.ops.aten.silu_backward(part, normal)
        torch.ops.aten.native_batch_norm_backward.out(
            part, whole[rows], factors, None, None, mean[number], inverse[number], True, 0.0, [True] * 3,
            out0=grad_x[rows], out1=grad_weight[number], out2=grad_bias[number],
        )  # fmt: skip
    sums = (each.sum(0).to(weight.dtype) for each in (grad_weight, grad_bias))
    return grad_x.to(x.dtype), *sums


_PLAIN = {
    "normalise": _plain_normalise, "normalise_pooled": _plain_normalise_pooled, "activated": _plain_activated,
    "gate_gradient": _plain_gate_gradient, "normalise_backward": _plain_normalise_backward,
}  # fmt: skip

_MAP = "Tensor x, Tensor weight, Tensor bias"
_KNOWN = "Tensor x, Tensor mean, Tensor inverse, Tensor weight, Tensor bias"
_SCHEMAS = {
    "normalise": f"({_MAP}, Tensor? keep, Tensor? residual, int group, float eps, bool silu)"
    " -> (Tensor, Tensor, Tensor)",
    "normalise_pooled": f"({_MAP}, int group, float eps) -> (Tensor, Tensor, Tensor)",
    "activated": f"({_KNOWN}, Tensor? gate) -> Tensor",
    "gate_gradient": f"(Tensor grad, {_KNOWN}) -> Tensor",
    "normalise_backward": f"(Tensor grad, {_KNOWN}, Tensor? scale, Tensor? shift, bool silu)"
    " -> (Tensor, Tensor, Tensor)",
}


def _shape_normalise(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_moments_like(x, args[4])


def _shape_normalise_pooled(x: Tensor, weight: Tensor, bias: Tensor, group: int, eps: float) -> tuple[Tensor, ...]:
    moments = _moments_like(x, group)
    return x.new_empty(x.shape[:2], dtype=moments.mean.dtype), *moments


def _shape_activated(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x)


def _shape_gate_gradient(grad: Tensor, x: Tensor, mean: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=mean.dtype)


def _shape_normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, bias: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


_SHAPES = {
    "normalise": _shape_normalise, "normalise_pooled": _shape_normalise_pooled, "activated": _shape_activated,
    "gate_gradient": _shape_gate_gradient, "normalise_backward": _shape_normalise_backward,
}  # fmt: skip


def _register() -> torch.library.Library:
    library: Any = torch.library.Library("align", "DEF")  # type: ignore[no-untyped-call]  # untyped in torch
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, _PLAIN[name], "CompositeExplicitAutograd")
        library.impl(name, functools.partial(_on_gpu, name), "CUDA")
        shape: Any = _SHAPES[name]
        torch.library.register_fake(f"align::{name}", shape, lib=library)
    return cast(torch.library.Library, library)


_LIBRARY = _register()  # the operations exist as long as it does
