"""The losses against a double loop in float64, and against torch's cross-entropy over the whole matrix."""

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from align.training import loss as module
from align.training.loss import align_loss, sigmoid_loss
from align.training.ranks.process_group import launch

TILES = [(1, 1), (3, 2), (4, 7), (1024, 1024)]


def double_loop(images, texts, temperature, smoothing):
    """The definition, written out."""
    count = len(images)
    scores = [[float(images[i] @ texts[j]) / temperature for j in range(count)] for i in range(count)]
    total = 0.0
    for table in (scores, [list(column) for column in zip(*scores, strict=True)]):
        for i in range(count):
            log_sum = math.log(sum(math.exp(score) for score in table[i]))
            for j in range(count):
                target = smoothing / count + (1 - smoothing if i == j else 0.0)
                total -= target * (table[i][j] - log_sum) / count
    return total


def naive(images, texts, temperature, smoothing):
    """The whole matrix through torch's own cross-entropy."""
    scores, target = images @ texts.T / temperature, torch.arange(len(images))
    return sum(
        (F.cross_entropy(table, target, label_smoothing=smoothing) for table in (scores, scores.T)), torch.tensor(0.0)
    )


def naive_sigmoid(images, texts, temperature, bias):
    """SigLIP's pseudocode."""
    scores = images @ texts.T / temperature + bias
    labels = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -F.logsigmoid(labels * scores).sum() / len(images)


def embeds(count, seed, width=6):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)


def value_and_gradients(function, *inputs):  # type: ignore[no-untyped-def]  # any loss
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


def assert_close(ours, theirs, tolerance=1e-10):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 1 / 64])
def test_equals_the_double_loop(count, smoothing, temperature):
    images, texts = embeds(count, 1), embeds(count, 2)
    loss = align_loss(images, texts, torch.tensor(temperature, dtype=torch.float64), smoothing)
    assert float(loss) == pytest.approx(double_loop(images, texts, temperature, smoothing), rel=1e-12)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("count", [1, 2, 7, 12])
@pytest.mark.parametrize("temperature", [1.0, 0.07, 1 / 1000])
def test_value_and_gradients_for_any_tile(count, tile, temperature):
    inputs = (embeds(count, 3), embeds(count, 4), torch.tensor(temperature, dtype=torch.float64))
    ours = value_and_gradients(functools.partial(align_loss, label_smoothing=0.1, tile=tile), *inputs)
    assert_close(ours, value_and_gradients(functools.partial(naive, smoothing=0.1), *inputs))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_sigmoid_value_and_gradients_for_any_tile(count, tile):
    inputs = (embeds(count, 3), embeds(count, 4), *torch.tensor([0.1, -10.0], dtype=torch.float64))
    ours = value_and_gradients(functools.partial(sigmoid_loss, tile=tile), *inputs)
    assert_close(ours, value_and_gradients(naive_sigmoid, *inputs))


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_rows_of_very_different_size_in_one_tile_in_float32(size, device, monkeypatch):
    """Two exponentials are used where one for rows and columns would under- or overflow."""
    asked, log_sum_exp = [], Tensor.logsumexp
    monkeypatch.setattr(Tensor, "logsumexp", lambda *some: asked.append(1) or log_sum_exp(*some))
    images, texts = embeds(40, 5).float() * 2, embeds(40, 6).float()
    images[::2] *= size
    inputs = (images, texts, torch.tensor(0.1))
    exact = value_and_gradients(functools.partial(naive, smoothing=0.1), *(tensor.double() for tensor in inputs))
    there = [tensor.to(device) for tensor in inputs]
    for tile in ((8, 8), (64, 64)):
        ours = value_and_gradients(functools.partial(align_loss, label_smoothing=0.1, tile=tile), *there)
        for one, other in zip(ours, exact, strict=True):
            assert torch.isfinite(one).all()
            torch.testing.assert_close(one.double().cpu(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert bool(asked) == (size > 1 or device.type == "cuda")


def test_columns_far_below_the_others_of_their_tile_in_float32(device):
    """Every row has a score near the tile's largest; every second column has none."""
    images = F.normalize(torch.tensor([1.0, 0, 0, 0, 0, 0]) + 0.1 * embeds(12, 5).float(), dim=-1)
    texts = images.flip(0) * torch.tensor([30.0, 0.1]).repeat(6)[:, None]
    inputs = (images, texts, torch.tensor(0.1))
    exact = value_and_gradients(functools.partial(naive, smoothing=0.1), *(tensor.double() for tensor in inputs))
    there = [tensor.to(device) for tensor in inputs]
    for one, other in zip(value_and_gradients(align_loss, *there), exact, strict=True):
        torch.testing.assert_close(one.double().cpu(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_sums_of_many_rows_are_those_of_all(with_small_blocks):
    inputs = (embeds(7, 3), embeds(7, 4), torch.tensor(0.07, dtype=torch.float64))
    assert_close(*with_small_blocks(lambda _: value_and_gradients(align_loss, *inputs)))


def test_no_matrix_of_the_batch_ever_exists():
    """The largest tensor is a tile or has the shape of the embeddings."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]  # torch leaves it untyped
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as torch
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.size = max(self.size, result.untyped_storage().nbytes())
            return result

    images, texts = embeds(512, 1).requires_grad_(), embeds(512, 2).requires_grad_()
    with Largest() as largest:
        align_loss(images, texts, 0.07, tile=(32, 32)).backward()  # type: ignore[no-untyped-call]  # torch's
    assert 0 < largest.size <= max(images.untyped_storage().nbytes(), 32 * 32 * 8)


def _save_share(path, loss, ranks):
    inputs = [embeds(12, 7), embeds(12, 8)]
    share = slice(ranks.rank * 12 // ranks.world_size, (ranks.rank + 1) * 12 // ranks.world_size)
    scalars = torch.tensor([0.07, -3.0] if loss == "sigmoid" else [0.07], dtype=torch.float64)
    function = functools.partial(sigmoid_loss if loss == "sigmoid" else align_loss, peers=ranks, tile=(4, 5))
    torch.save(value_and_gradients(function, *(one[share] for one in inputs), *scalars), path / f"{ranks.rank}.pt")


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("loss", ["align", "sigmoid"])
def test_negatives_of_all_ranks_with_exact_gradients(tmp_path, world_size, loss):
    launch(functools.partial(_save_share, tmp_path, loss), world_size, 1)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    scalars = torch.tensor([0.07, -3.0] if loss == "sigmoid" else [0.07], dtype=torch.float64)
    function = naive_sigmoid if loss == "sigmoid" else functools.partial(naive, smoothing=0.1)
    theirs = value_and_gradients(function, embeds(12, 7), embeds(12, 8), *scalars)
    for part in parts:
        assert_close(part[:1], theirs[:1])
    for index in (1, 2):
        assert_close([torch.cat([part[index] for part in parts])], [theirs[index]])
    for index in range(3, len(theirs)):  # temperature and bias: shares that add up
        assert_close([sum((part[index] for part in parts), torch.tensor(0.0))], [theirs[index]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, device):
    """In float16 a sum of exponentials over the batch, or of a small temperature's scores, overflows."""
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(300, 8), dim=-1).to(device, dtype).requires_grad_() for _ in range(2))
    for function in (align_loss, functools.partial(sigmoid_loss, bias=-10.0)):
        images.grad = texts.grad = None
        loss = function(images, texts, 0.01)
        loss.backward()
        assert loss.dtype == torch.float32 and images.grad is not None and images.grad.dtype == dtype
        torch.testing.assert_close(loss, function(images.float(), texts.float(), 0.01))
        assert bool(loss.isfinite()) and bool(images.grad.isfinite().all())


@pytest.mark.parametrize("spread", [1.0, 40.0])  # the second overflows a shared exponential
def test_what_a_gpu_computes_is_what_a_cpu_computes(spread, monkeypatch):
    torch.manual_seed(0)
    found = []
    for ways in ({}, module._ON_CUDA):
        monkeypatch.setattr(module, "_tile_function", lambda function, _, ways=ways: ways.get(function, function))
        torch.manual_seed(1)
        images, texts = ((spread * torch.randn(9, 4)).requires_grad_() for _ in range(2))
        loss = align_loss(images, texts, 0.5, tile=(4, 5))
        found.append((loss, *torch.autograd.grad(loss, (images, texts))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
