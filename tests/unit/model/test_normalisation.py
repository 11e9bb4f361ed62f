"""Batch-norm and what follows it as one operation, against `nn.BatchNorm2d` group by group in float64."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from align.model import normalisation as module
from align.model.batch_norm import BatchNorm2d, normalised
from align.model.image_tower import ImageTower
from align.model.normalisation import kernels
from tests.support.training_data import MODEL

EPS, GROUP, CHANNELS = 1e-3, 4, 6


def maps(*shape, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def norm_of(kind, *args):
    norm = kind(CHANNELS, EPS, *args).double().train()
    with torch.no_grad():
        norm.weight.copy_(maps(CHANNELS, seed=1) + 1.5)
        norm.bias.copy_(maps(CHANNELS, seed=2))
    return norm


def plain(x, norm, silu, keep, residual):
    out = torch.cat([norm(part) for part in x.split(GROUP)])
    out = F.silu(out) if silu else out
    out = out if keep is None else out * keep[:, None, None, None]
    return out if residual is None else out + residual


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@pytest.mark.parametrize(("silu", "rest"), [(False, False), (True, False), (False, True)])
def test_values_and_gradients_are_those_of_plain_batch_norm(silu, rest, size, device):
    shape = (3 * GROUP, CHANNELS, *size)
    keep = torch.tensor([0.0, 1.25, 1.25] * GROUP, dtype=torch.float64).to(device) if rest else None
    found = []
    for norm, function in (
        (norm_of(nn.BatchNorm2d), plain),
        (norm_of(BatchNorm2d, GROUP), lambda x, norm, silu, keep, residual: normalised(
            x, norm, silu=silu, keep=keep, residual=residual)),
    ):  # fmt: skip
        norm = norm.to(device)
        x, residual = (maps(*shape, seed=seed).to(device).requires_grad_() for seed in (3, 4))
        out = function(x + 100.0, norm, silu, keep, residual if rest else None)
        (out * maps(*shape, seed=5).to(device)).sum().backward()
        found.append([out, x.grad, norm.weight.grad, norm.bias.grad] + [residual.grad] * rest)
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-9)


def test_running_statistics_do_not_move_and_the_map_is_all_that_is_kept():
    norm, kept = norm_of(BatchNorm2d, GROUP), []
    x = maps(2 * GROUP, CHANNELS, 5, 5, seed=3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        normalised(x, norm, silu=True)
    assert sum(each.numel() for each in kept) == x.numel() + 4 * CHANNELS + 2 * CHANNELS
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def block(stride, expands):
    torch.manual_seed(0)
    tower = ImageTower(MODEL).double().train()
    chosen = next(
        each for each in tower.encoder.blocks
        if (each.expansion is not None) == expands and each.depthwise_conv.depthwise_conv.stride[0] == stride
    )  # fmt: skip
    first = chosen.expansion.expand_conv if expands else chosen.depthwise_conv.depthwise_conv
    return chosen, maps(2 * GROUP, first.in_channels, 5, 5, seed=6)


def results(run, part, x):
    part.zero_grad()
    x = x.clone().requires_grad_()
    out = run(x)
    (out * maps(*out.shape, seed=7).to(x.device)).sum().backward()
    return [out.detach(), x.grad, *(param.grad.clone() for param in part.parameters())]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("stride", "expands"), [(1, False), (1, True), (2, True)])
def test_a_joined_block_equals_its_layers(stride, expands, again, device):
    part, x = (each.to(device) for each in block(stride, expands))
    part.again = again
    expected = results(part._layer_by_layer, part, x)
    for mine, other in zip(results(part, part, x), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-9)


def test_gradients_are_those_of_differences():
    part, x = block(1, True)
    assert torch.autograd.gradcheck(part, x[:, :, :2, :2].clone().requires_grad_(), fast_mode=True)


def test_the_operations_are_registered_as_torch_wants_them():
    x, weight, bias = maps(8, CHANNELS, 3, 3, seed=1), maps(CHANNELS, seed=2), maps(CHANNELS, seed=3)
    checks = ("test_schema", "test_faketensor")
    mean, inverse = torch.ops.align.normalise(x, weight, bias, None, None, GROUP, EPS, True)[1:]
    gate, known = maps(8, CHANNELS, seed=4), (x, mean, inverse, weight, bias)
    for name, args in {
        "normalise": (x, weight, bias, gate[:, 0], x, GROUP, EPS, True),
        "normalise_pooled": (x, weight, bias, GROUP, EPS),
        "activated": (*known, gate),
        "gate_gradient": (x, *known),
        "normalise_backward": (x, *known, gate, gate, True),
    }.items():
        torch.library.opcheck(getattr(torch.ops.align, name).default, args, test_utils=checks)


@pytest.fixture(name="tried")
def _tried(monkeypatch):
    """Triton's kernels raise the first of these errors, and each call of them adds it once more."""
    errors = [RuntimeError("no compiler\nand a page of code")]

    def normalise(*_):
        errors.append(errors[0])
        raise errors[0]

    monkeypatch.setattr(module, "_CHOICE", module._Choice())
    monkeypatch.setattr(module, "_triton", lambda: SimpleNamespace(normalise=normalise))
    return errors


def arguments(kind=torch.float32):
    x, weight, bias = maps(8, CHANNELS, 3, 3, seed=1), maps(CHANNELS, seed=2), maps(CHANNELS, seed=3)
    return x.to(kind), weight.to(kind), bias.to(kind), None, None, GROUP, EPS, True


def test_kernels_of_a_gpu_that_fail_cost_one_warning(tried, capsys):
    for _ in range(2):
        found = module._on_gpu("normalise", *arguments())
        torch.testing.assert_close(found, module._PLAIN["normalise"](*arguments()), atol=0, rtol=0)
    said = capsys.readouterr().err
    assert said.count("warning: batch-norm runs without Triton, slower, because it failed: no compiler") == 1
    assert "page of code" not in said and len(tried) == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("none left"), RuntimeError("Triton Error [CUDA]: out of memory")], ids=repr
)
def test_a_gpu_without_memory_is_no_reason_for_other_kernels(tried, error):
    tried[0] = error
    with pytest.raises(type(error), match=re.escape(str(error))):
        module._on_gpu("normalise", *arguments())
    assert not module._CHOICE.broken


def test_float64_and_a_torch_without_triton_have_the_plain_kernels(tried, monkeypatch, capsys):
    module._on_gpu("normalise", *arguments(torch.float64))
    monkeypatch.setattr(module, "_triton", lambda: None)
    module._on_gpu("normalise", *arguments())
    assert len(tried) == 1 and capsys.readouterr().err == ""


def test_kernels_are_forced_on_any_device(tried):
    norm, x = norm_of(BatchNorm2d, GROUP).float(), maps(GROUP, CHANNELS, 3, 3, seed=1).float()
    with kernels("plain"):
        module._on_gpu("normalise", *arguments())
        assert module.silu_is_dear(x)
    with kernels("triton"), pytest.raises(RuntimeError, match="no compiler"):
        normalised(x, norm)
    with kernels("triton"):
        assert not module.silu_is_dear(x)
    assert len(tried) == 2 and normalised(x, norm).shape == x.shape


def test_a_gpu_has_kernels_of_its_own():
    for name in module._PLAIN:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"align::{name}", "CUDA")
