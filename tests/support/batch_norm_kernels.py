"""Triton kernels against the plain ones: run as a module, `operations|layers cpu|cuda`.

On a CPU they run in Triton's interpreter, with TRITON_INTERPRET=1. Maps, and all memory that is allocated for a kernel,
lie between fences of NaN, and the memory holds NaN until it is written: a kernel that reads, writes or leaves too much
shows it.
"""

import math
import sys
import time
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from align.model import batch_norm_triton
from align.model.batch_norm import BatchNorm2d, normalised
from align.model.image_tower import ImageTower
from align.model.normalisation import _PLAIN, kernels
from tests.support.training_data import MODEL

EPS = 1e-3
#: Shape, samples of a group, type and layout. In order: odd sizes and another layout; two tiles of channels, the second
#: almost empty, and one group; two programs for a sample's rows, the second shorter; one channel; a single sample of
#: one position, where the deviation is 0; channels in units of 8.
CASES = [
    ((4, 6, 5, 7), 2, torch.float32, torch.contiguous_format),
    ((4, 70, 3, 3), 4, torch.bfloat16, torch.channels_last),
    ((4, 5, 23, 23), 2, torch.float16, torch.channels_last),
    ((4, 5, 23, 23), 2, torch.float32, torch.channels_last),
    ((6, 1, 3, 2), 3, torch.float32, torch.channels_last),
    ((2, 32, 1, 1), 1, torch.bfloat16, torch.contiguous_format),
    ((3, 24, 9, 8), 3, torch.bfloat16, torch.contiguous_format),
]
#: Elements of a fence, more than a tile.
FENCE = 8192
NEAR = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.05, 0.02), torch.float16: (8e-3, 4e-3)}


def compare_operations(device):
    """Raises AssertionError where a kernel computes something else, on `cpu`, `cuda` or one of several GPUs such as
    `cuda:1`.
    """
    torch.manual_seed(0)
    for case in CASES:
        _operations(device, *case)
        print(f"equal: {case}, {time.process_time():.0f} s", flush=True)
    _refused(device)
    _offset(device)


def compare_layers(device):
    """Raises AssertionError where a layer or a block computes something else. See `compare_operations`."""
    torch.manual_seed(0)
    _statistics(device)
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # it rounds a digit up or down
    try:
        for case in ((1, False, False), (2, True, True), (1, True, True)):
            _block(device, *case)
            print(f"equal: block {case}, {time.process_time():.0f} s", flush=True)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def _fences():
    """Around new memory; none of them has changed at the end."""
    rooms, like, new = [], torch.empty_like, Tensor.new_empty

    def room(shape, stride, kind, device):
        rooms.append(torch.full((math.prod(shape) + 2 * FENCE,), float("nan"), dtype=kind, device=device))
        inner = rooms[-1][FENCE:-FENCE]
        return inner.view(shape) if stride is None else inner.as_strided(shape, stride)

    def empty_like(x, **options):  # Triton's interpreter asks with other options
        return like(x, **options) if options else room(tuple(x.shape), like(x).stride(), x.dtype, x.device)

    def new_empty(x, *shape, **options):
        return room(shape, None, options["dtype"], x.device) if [*options] == ["dtype"] else new(x, *shape, **options)

    with patch.object(torch, "empty_like", empty_like), patch.object(Tensor, "new_empty", new_empty):
        yield
    assert rooms, "no memory"
    for each in rooms:
        assert each[:FENCE].isnan().all() and each[-FENCE:].isnan().all(), "a kernel writes beside its memory"


def _operations(device, shape, group, kind, layout):
    atol, rtol = NEAR[kind]
    size, width = shape[:2]

    def check(name, *args):
        results = [_PLAIN[name](*args)]
        for _ in range(1 if device == "cpu" else 2):
            with _fences():
                results.append(getattr(batch_norm_triton, name)(*args))
        expected, found, *more = (result if isinstance(result, tuple) else (result,) for result in results)
        for index, (mine, other) in enumerate(zip(found, expected, strict=True)):
            what = f"result {index} of {name}, {shape} {kind} {layout}, {[type(each).__name__ for each in args]}"
            torch.testing.assert_close(mine, other, atol=atol, rtol=rtol, msg=lambda text, what=what: f"{what}: {text}")
            if min(shape) > 1:  # the stride of a dimension of 1 means nothing
                assert mine.stride() == other.stride(), what
            for again in more:
                assert torch.equal(mine, again[index]), f"{what}: differs from run to run"
        assert len({each.untyped_storage().data_ptr() for each in found}) == len(found), f"{name}: shared memory"
        return expected

    x, grad, residual = (_amid_nan(torch.randn(shape), kind, layout, device) for _ in range(3))
    weight, bias = (torch.rand(width) + 0.5).to(device), torch.randn(width).to(device)
    gate, shift = torch.rand(size, width).to(device, kind), torch.randn(size, width).to(device)
    keep = torch.tensor([0.0, 1.25]).repeat(size)[:size].to(device)
    for silu, some, beside in ((True, None, None), (False, keep, residual), (False, None, None)):
        _, mean, inverse = check("normalise", x, weight, bias, some, beside, group, EPS, silu)
        scale = None if some is None else some[:, None]
        check("normalise_backward", grad, x, mean, inverse, weight, bias, scale, None, silu)
    check("normalise_pooled", x, weight, bias, group, EPS)
    known = (x, mean, inverse, weight, bias)
    check("activated", *known, None)
    check("activated", *known, gate)
    check("gate_gradient", grad, *known)
    check("normalise_backward", grad, *known, gate, shift, True)


def _amid_nan(values, kind, layout, device):
    room = torch.full((values.numel() + 2 * FENCE,), float("nan"), dtype=kind, device=device)
    inner = room[FENCE:-FENCE]
    if layout == torch.channels_last:
        B, C, H, W = values.shape
        view = inner.view(B, H, W, C).permute(0, 3, 1, 2)
    else:
        view = inner.view(values.shape)
    return view.copy_(values)


def _refused(device):
    """A batch that the group does not divide."""
    x, vector = torch.zeros(6, 3, 2, 2, device=device), torch.ones(3, device=device)
    for name, args in (("normalise", (None, None, 4, EPS, True)), ("normalise_pooled", (4, EPS))):
        try:
            getattr(batch_norm_triton, name)(x, vector, vector, *args)
        except ValueError:
            continue
        raise AssertionError(f"{name} takes 6 samples in groups of 4")


def _offset(device):
    """Moments do not cancel: values far from 0 in relation to their spread, in a group of several programs."""
    x = (torch.randn(2, 3, 24, 25, dtype=torch.float64) * 0.01 + 100.0).float()
    one, zero = torch.ones(3, device=device), torch.zeros(3, device=device)
    eps = 1e-12  # not 0: a program has lanes for more channels than there are, of variance 0
    _, mean, inverse = batch_norm_triton.normalise(x.to(device), one, zero, None, None, 2, eps, False)
    exact = x.double()
    torch.testing.assert_close(mean[0].double().cpu(), exact.mean((0, 2, 3)), atol=5e-5, rtol=0)
    inverted = exact.var((0, 2, 3), correction=0).rsqrt()
    torch.testing.assert_close(inverse[0].double().cpu(), inverted, atol=0, rtol=1e-4)


def _statistics(device):
    """A layer's values, running statistics and evaluation."""
    x, found = torch.randn(6, 5, 4, 3, device=device), []
    for which in ("triton", "plain"):
        norm = BatchNorm2d(5, EPS, 3).to(device).train()
        norm.reset_running_stats()
        norm.collecting = True
        with kernels(which):  # type: ignore[arg-type]  # one of the two
            found.append([normalised(x, norm), norm.running_mean, norm.running_var, norm.eval()(x)])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def _block(device, stride, expands, again):
    """Output and all gradients of a block with stochastic depth, on the way that a GPU takes through it."""
    torch.manual_seed(1)
    part = next(
        each for each in ImageTower(MODEL).encoder.blocks
        if (each.expansion is not None) == expands and each.depthwise_conv.depthwise_conv.stride[0] == stride
    ).to(device).train()  # fmt: skip
    part.again, part.projection.dropout.keep = again, torch.tensor([0.0, 1.25], device=device).repeat(4)
    first = part.expansion.expand_conv if expands else part.depthwise_conv.depthwise_conv
    x = torch.randn(8, first.in_channels, 5, 5, device=device).contiguous(memory_format=torch.channels_last)
    found = []
    for which in ("triton", "plain"):
        part.zero_grad()
        own = x.clone().requires_grad_()
        with kernels(which):  # type: ignore[arg-type]  # one of the two
            out = part(own)
            (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        found.append([out.detach(), own.grad, *(param.grad for param in part.parameters())])
    for mine, other in zip(*found, strict=True):
        assert mine is not None and other is not None
        size = float(other.abs().max())
        torch.testing.assert_close(mine, other, atol=2e-4 * max(size, 1.0), rtol=1e-3)


if __name__ == "__main__":
    what = {"operations": compare_operations, "layers": compare_layers}
    what[sys.argv[1]](sys.argv[2])
