"""Checks of single operations: the losses, LAMB, batch-norm in groups, its Triton kernels, depthwise convolutions."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from align.model import normalisation
from align.model.batch_norm import BatchNorm2d, normalised
from align.model.mbconv import DepthwiseConv2d, convolve, convolve_backward
from align.training import loss as losses
from align.training.lamb import Lamb
from align.training.loss import align_loss, sigmoid_loss
from benchmarks.gpu.checks import Check, Found, NotPossibleError, furthest, on_cuda, with_compiler
from benchmarks.gpu.scale import Scale
from tests.support.lamb_reference import lamb

_WIDTH = 640
#: Samples of a group, as in the paper's towers, and shapes of maps: odd sizes, few channels, a map of one pixel.
_GROUP = 16
_MAPS = ((32, 48, 19, 19), (32, 33, 7, 5), (16, 96, 10, 10), (32, 8, 1, 1))
_TRITON = "align.model.batch_norm_triton"

Loss = Callable[..., Tensor]


def _dense(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    scores, target = images @ texts.T / temperature, torch.arange(len(images))
    return F.cross_entropy(scores, target, label_smoothing=0.1) + F.cross_entropy(scores.T, target, label_smoothing=0.1)


def _dense_sigmoid(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    scores = images @ texts.T / temperature - 10.0
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return F.softplus(-signs * scores).sum() / len(images)


def _inputs(count: int, temperature: float) -> list[Tensor]:
    """Pairs that resemble each other, as those of a trained model do: (B, D) twice, and the temperature; float64."""
    images = F.normalize(torch.randn(count, _WIDTH, dtype=torch.float64), dim=-1)
    texts = F.normalize(images + 0.05 * torch.randn(count, _WIDTH, dtype=torch.float64), dim=-1)
    return [images, texts, torch.tensor(temperature, dtype=torch.float64)]


def _with_gradients(loss: Loss, inputs: list[Tensor], **settings: Any) -> list[Tensor]:
    own = [each.detach().clone().requires_grad_() for each in inputs]
    value = loss(*own, **settings)
    value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return [value, *(each.grad for each in own if each.grad is not None)]


def _here(inputs: list[Tensor], scale: Scale, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [each.to(scale.device, dtype) for each in inputs]


def _pairs(scale: Scale) -> int:
    return 192 if scale.stand_in else 1536


def _loss(scale: Scale) -> Found:
    worst = 0.0
    for temperature in (1.0, 0.07, 0.02):
        inputs = _inputs(_pairs(scale), temperature)
        found = _with_gradients(align_loss, _here(inputs, scale))
        worst = max(worst, furthest(zip(found, _with_gradients(_dense, inputs), strict=True)))
    return Found(worst, 2e-4)


def _loss_beside_tf32(scale: Scale) -> Found:
    on_cuda(scale, "TF32 is a matter of CUDA")
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        return _loss(scale)
    finally:
        matmul.allow_tf32 = before


def _tiles(scale: Scale) -> Found:
    count = _pairs(scale)
    inputs = _here(_inputs(count, 0.07), scale)
    whole = _with_gradients(align_loss, inputs)
    worst = 0.0
    uneven = [(64, 100)] if scale.stand_in else []  # on a card each size of a tile is compiled
    for tile in ((count // 2, count // 3), (count // 3, count), *uneven):
        worst = max(worst, furthest(zip(_with_gradients(align_loss, inputs, tile=tile), whole, strict=True)))
    return Found(worst, 1e-4)


def _sigmoid(scale: Scale) -> Found:
    inputs = _inputs(_pairs(scale), 0.1)
    found = _with_gradients(lambda *own: sigmoid_loss(*own, bias=-10.0), _here(inputs, scale))
    return Found(furthest(zip(found, _with_gradients(_dense_sigmoid, inputs), strict=True)), 2e-4)


def _half(dtype: torch.dtype) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        images, texts, temperature = _inputs(_pairs(scale), 0.02)
        rounded = [images.to(dtype).double(), texts.to(dtype).double(), temperature]
        found = _with_gradients(align_loss, [*_here(rounded[:2], scale, dtype), *_here(rounded[2:], scale)])
        expected = _with_gradients(_dense, rounded)
        bound = 2e-3 if dtype == torch.float16 else 1e-2  # of gradients rounded to the embeddings' type
        return Found(furthest(zip(found, expected, strict=True)), bound)

    return check


def _compiled_tiles(scale: Scale) -> Found:
    on_cuda(scale, "tiles are compiled on CUDA only")
    with_compiler()
    scores = torch.randn(256, 320, device=scale.device)
    rows, columns = scores.logsumexp(1), scores.logsumexp(0)
    worst = 0.0
    for function in (losses._log_sums_apart, losses._softmaxes_apart):
        found = torch.compile(function, dynamic=False)(scores.clone(), rows, columns)  # an error here is the check's
        expected = function(scores.clone().cpu(), rows.cpu(), columns.cpu())
        several = isinstance(found, tuple)
        worst = max(
            worst, furthest(zip(found if several else [found], expected if several else [expected], strict=True))
        )
    return Found(worst, 1e-5)


def _lamb(adapt: bool) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        generator = np.random.default_rng(0)
        shapes = [(64, 32), (7,), (16, 3, 5, 5), (33, 1)]
        weights = [generator.normal(size=shape) for shape in shapes]
        grads = [[generator.normal(size=shape) for _ in range(4)] for shape in shapes]
        params = [torch.nn.Parameter(torch.tensor(each, device=scale.device, dtype=torch.float32)) for each in weights]
        decay = 0.01 if adapt else 0.0  # the reference's vectors have none
        optimiser = Lamb([{"params": params, "adapt": adapt}], weight_decay=decay, betas=(0.9, 0.999))
        optimiser.set_learning_rate(0.01)
        for step in range(4):
            for param, own in zip(params, grads, strict=True):
                param.grad = torch.tensor(own[step], device=scale.device, dtype=torch.float32)
            optimiser.step()
        expected = [
            torch.from_numpy(lamb(each, own, rate=0.01, decay=decay, beta2=0.999, adapt=adapt))
            for each, own in zip(weights, grads, strict=True)
        ]
        return Found(furthest(zip(params, expected, strict=True)), 1e-5)

    return check


def _adamw(scale: Scale) -> Found:
    ours, theirs = (torch.nn.Parameter(torch.randn(64, 32, device=scale.device)) for _ in range(2))
    with torch.no_grad():
        theirs.copy_(ours)
    optimiser = Lamb([{"params": [ours], "adapt": False}], weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    optimiser.set_learning_rate(0.01)
    peer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    for _ in range(4):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        optimiser.step(), peer.step()
    return Found(furthest([(ours, theirs)]), 1e-5)


def _by_autograd(x: Tensor, norm: BatchNorm2d, keep: Tensor, residual: Tensor) -> Tensor:
    """What `normalised` computes, from torch's own operations, group by group."""
    parts = [F.batch_norm(each, None, None, norm.weight, norm.bias, True, 0.0, norm.eps) for each in x.split(_GROUP)]
    return residual + keep[:, None, None, None] * F.silu(torch.cat(parts))


def _group_norm(dtype: torch.dtype, bound: float) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        worst = 0.0
        for shape in _MAPS:
            norm = BatchNorm2d(shape[1], 1e-3, _GROUP).double().train()
            with torch.no_grad():
                norm.weight.uniform_(0.5, 1.5), norm.bias.normal_()
            x, residual, grad = (torch.randn(shape, dtype=torch.float64).to(dtype).double() for _ in range(3))
            keep = torch.tensor([0.0, 1.25], dtype=torch.float64).repeat(shape[0] // 2)
            expected = _values(_by_autograd, x, norm, keep, residual, grad)
            there = BatchNorm2d(shape[1], 1e-3, _GROUP).train().to(scale.device)
            there.load_state_dict(norm.state_dict())
            own = [_laid_out(each, scale, dtype) for each in (x, residual, grad)]
            found = _values(_ours, own[0], there, keep.to(scale.device, torch.float32), own[1], own[2])
            worst = max(worst, furthest(zip(found, expected, strict=True)))
        return Found(worst, bound)

    return check


def _ours(x: Tensor, norm: BatchNorm2d, keep: Tensor, residual: Tensor) -> Tensor:
    return normalised(x, norm, silu=True, keep=keep, residual=residual)


def _values(
    function: Callable[..., Tensor], x: Tensor, norm: BatchNorm2d, keep: Tensor, residual: Tensor, grad: Tensor
) -> list[Tensor]:
    x, residual = x.detach().clone().requires_grad_(), residual.detach().clone().requires_grad_()
    out = function(x, norm, keep, residual)
    grads = torch.autograd.grad(out, [x, residual, norm.weight, norm.bias], grad)
    return [out, *grads]


def _laid_out(x: Tensor, scale: Scale, dtype: torch.dtype) -> Tensor:
    return x.to(scale.device, dtype).contiguous(memory_format=torch.channels_last)


def _every_operation(scale: Scale, kernels: dict[str, Callable[..., Any]], dtype: torch.dtype) -> float:
    """The largest error of the operations of `align.model.normalisation`, against its eager ones in float64."""
    eager, worst = normalisation._PLAIN, 0.0
    for shape in _MAPS:
        size, width = shape[:2]
        x, grad, residual = (torch.randn(shape, dtype=torch.float64).to(dtype).double() for _ in range(3))
        weight, bias = torch.rand(width, dtype=torch.float64) + 0.5, torch.randn(width, dtype=torch.float64)
        keep = torch.tensor([0.0, 1.25], dtype=torch.float64).repeat(size // 2)
        gate, shift = (torch.rand(size, width, dtype=torch.float64) for _ in range(2))
        _, mean, inverse = eager["normalise"](x, weight, bias, None, None, _GROUP, 1e-3, True)
        known = (x, mean, inverse, weight, bias)
        calls: list[tuple[str, tuple[Any, ...]]] = [
            ("normalise", (x, weight, bias, None, None, _GROUP, 1e-3, True)),
            ("normalise", (x, weight, bias, keep, residual, _GROUP, 1e-3, False)),
            ("normalise_pooled", (x, weight, bias, _GROUP, 1e-3)),
            ("activated", (*known, None)), ("activated", (*known, gate)), ("gate_gradient", (grad, *known)),
            ("normalise_backward", (grad, *known, None, None, True)),
            ("normalise_backward", (grad, *known, keep[:, None], None, False)),
            ("normalise_backward", (grad, *known, gate, shift, True)),
        ]  # fmt: skip
        for name, arguments in calls:
            expected = eager[name](*arguments)
            found = kernels[name](*(_argument(each, scale, dtype) for each in arguments))
            both = (found, expected) if isinstance(expected, tuple) else ((found,), (expected,))
            worst = max(worst, furthest(zip(*both, strict=True)))
    return worst


def _argument(value: Any, scale: Scale, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _laid_out(value, scale, dtype) if value.ndim == 4 else value.to(scale.device, torch.float32)


def _operations(dtype: torch.dtype, bound: float) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        there = {name: getattr(torch.ops.align, name).default for name in normalisation._PLAIN}
        return Found(_every_operation(scale, there, dtype), bound)

    return check


def _large_map(scale: Scale) -> Found:
    """The last group of a map whose numbers do not fit into 32 bits, beside that group alone."""
    on_cuda(scale, "a CPU would take minutes")
    width, side, groups = 288, 145, 23
    size = groups * _GROUP
    free = torch.cuda.mem_get_info(scale.device)[0]
    if (needed := 6 * 4 * size * width * side**2) > free:  # eager operations hold several maps in float32
        raise NotPossibleError(f"it needs {needed / 2**30:.0f} GiB of the card, {free / 2**30:.0f} are free")
    layout = {"device": scale.device, "dtype": torch.bfloat16}
    x = torch.empty(size, width, side, side, memory_format=torch.channels_last, **layout).normal_()
    weight, bias = torch.rand(width, device=scale.device) + 0.5, torch.randn(width, device=scale.device)
    last = slice(-_GROUP, None)
    out, mean, inverse = torch.ops.align.normalise(x, weight, bias, None, None, _GROUP, 1e-3, True)
    own = torch.ops.align.normalise(x[last].clone(), weight, bias, None, None, _GROUP, 1e-3, True)
    worst = furthest([(out[last], own[0]), (mean[-1], own[1][0]), (inverse[-1], own[2][0])])
    del out
    known = weight, bias, None, None, True
    grad = torch.ops.align.normalise_backward(x, x, mean, inverse, *known)[0]
    alone = torch.ops.align.normalise_backward(x[last].clone(), x[last].clone(), *own[1:], *known)[0]
    worst = max(worst, furthest([(grad[last], alone)]))
    return Found(worst, 1e-2)


def _compilers(scale: Scale) -> Found:
    on_cuda(scale, "Triton compiles for GPUs")
    with_compiler()
    return Found(0, 0, "parts missing here:")


def _triton(dtype: torch.dtype, bound: float) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        if importlib.util.find_spec(_TRITON) is None:
            raise NotPossibleError("align.model has no Triton kernels")
        if scale.stand_in and os.environ.get("TRITON_INTERPRET") != "1":
            raise NotPossibleError("Triton's kernels need CUDA, or TRITON_INTERPRET=1")
        if not scale.stand_in:  # its interpreter compiles nothing
            with_compiler()
        kernels = importlib.import_module(_TRITON)
        return Found(
            _every_operation(scale, {name: getattr(kernels, name) for name in normalisation._PLAIN}, dtype), bound
        )

    return check


def _depthwise_triton(scale: Scale) -> Found:
    if scale.stand_in and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotPossibleError("Triton's kernels need CUDA, or TRITON_INTERPRET=1")
    if not scale.stand_in:
        with_compiler()
    kernels, worst = importlib.import_module("benchmarks.gpu.depthwise_triton"), 0.0
    for size, stride, side in ((3, 1, 19), (3, 2, 18), (5, 1, 9), (5, 2, 37)):
        x, weight = torch.randn(4, 24, side, side), torch.randn(24, 1, size, size)
        grad = torch.randn(4, 24, side // stride, side // stride)
        exact = [each.bfloat16().double() for each in (grad, x, weight)]
        there = [_laid_out(each, scale, torch.bfloat16) for each in exact]
        found = [kernels.convolve(*there[1:], stride), *kernels.convolve_backward(*there, stride)]
        expected = [convolve(*exact[1:], stride), *convolve_backward(*exact, stride)]
        assert all(each is not None for each in expected)
        worst = max(worst, furthest(zip(found, cast(list[Tensor], expected), strict=True)))
    return Found(worst, 2e-2)


def _depthwise(dtype: torch.dtype, bound: float) -> Callable[[Scale], Found]:
    def check(scale: Scale) -> Found:
        worst = 0.0
        for size, stride, side in ((3, 1, 19), (3, 2, 18), (5, 1, 9), (5, 2, 37), (5, 1, 2)):
            layer = DepthwiseConv2d(24, size, stride).double()
            layer.weight.data = layer.weight.data.to(dtype).double()
            there = DepthwiseConv2d(24, size, stride).to(scale.device, dtype)
            there.load_state_dict(layer.state_dict())
            x = torch.randn(16, 24, side, side, dtype=torch.float64).to(dtype).double()
            grad = torch.randn_like(layer(x)).to(dtype).double()
            results = []
            for own, inputs, outer in (
                (layer, x, grad),
                (there, _laid_out(x, scale, dtype), _laid_out(grad, scale, dtype)),
            ):
                inputs = inputs.detach().requires_grad_()
                out = own(inputs)
                results.append([out, *torch.autograd.grad(out, [inputs, own.weight], outer)])
            worst = max(worst, furthest(zip(results[1], results[0], strict=True)))
        return Found(worst, bound)

    return check


CHECKS = [
    Check("loss and gradients, tiles against the whole matrix in float64", _loss),
    Check("the same with TF32 allowed", _loss_beside_tf32),
    Check("loss by tiles of other sizes", _tiles),
    Check("sigmoid loss against the whole matrix in float64", _sigmoid),
    Check("loss of bfloat16 embeddings", _half(torch.bfloat16)),
    Check("loss of float16 embeddings", _half(torch.float16)),
    Check("what Triton and torch.compile need to compile", _compilers),
    Check("tiles compiled by torch.compile", _compiled_tiles),
    Check("LAMB against NumPy in float64", _lamb(adapt=True)),
    Check("LAMB's steps for vectors against NumPy in float64", _lamb(adapt=False)),
    Check("AdamW against torch's", _adamw),
    Check("batch-norm in groups against torch's in float64, float32", _group_norm(torch.float32, 2e-5)),
    Check("batch-norm in groups against torch's in float64, bfloat16", _group_norm(torch.bfloat16, 2e-2)),
    Check("operations of batch-norm against the eager ones in float64, float32", _operations(torch.float32, 2e-5)),
    Check("operations of batch-norm against the eager ones in float64, bfloat16", _operations(torch.bfloat16, 2e-2)),
    Check("batch-norm on a map of more than 2^31 numbers", _large_map),
    Check("Triton's kernels against the eager ones in float64, float32", _triton(torch.float32, 1e-4)),
    Check("Triton's kernels against the eager ones in float64, bfloat16", _triton(torch.bfloat16, 2e-2)),
    Check("depthwise convolution and gradients against float64, float32", _depthwise(torch.float32, 2e-5)),
    Check("depthwise convolution and gradients against float64, bfloat16", _depthwise(torch.bfloat16, 2e-2)),
    Check("depthwise convolution and gradients in Triton against float64, bfloat16", _depthwise_triton),
]  # fmt: skip
