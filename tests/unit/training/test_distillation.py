"""ALIGN's loss with a teacher, against torch's own divergence over the whole matrices."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from align.training import loss as module
from align.training.distillation import Teacher
from align.training.loss import align_loss
from align.training.ranks.process_group import Ranks, launch

COUNT, WIDTH, TEACHER_WIDTH = 12, 6, 9
TILES = [(1, 1), (4, 5), (1024, 1024)]


class Watch(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, and how often a host waits for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.waits += func.overloadpacket.__name__ == "_local_scalar_dense"
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


def embeds(seed: int, width: int = WIDTH, count: int = COUNT) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)


def teacher(weight: float, rows: slice = slice(None), temperature: float = 0.2) -> Teacher:
    images, texts = embeds(11, TEACHER_WIDTH), embeds(12, TEACHER_WIDTH)
    return Teacher(images[rows], texts[rows], temperature, weight)


def dense(images: Tensor, texts: Tensor, temperature: Tensor, smoothing: float, by: Teacher) -> Tensor:
    """The definition over whole matrices: cross-entropy with the labels, divergence from the teacher."""
    labels, divergence = torch.zeros((), dtype=images.dtype), torch.zeros((), dtype=images.dtype)
    scores = images @ texts.T / temperature
    taught = (by.image_embeds @ by.text_embeds.T / by.temperature).to(images.dtype)
    for mine, theirs in ((scores, taught), (scores.T, taught.T)):
        labels = labels + F.cross_entropy(mine, torch.arange(len(images)), label_smoothing=smoothing)
        log_mine, log_theirs = mine.log_softmax(1), theirs.log_softmax(1)
        divergence = divergence + F.kl_div(log_mine, log_theirs, reduction="batchmean", log_target=True)
    return (1 - by.weight) * labels + by.weight * divergence


def value_and_gradients(function, *inputs: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]  # any loss
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


def student() -> tuple[Tensor, Tensor, Tensor]:
    return embeds(1), embeds(2), torch.tensor(0.07, dtype=torch.float64)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradients_for_any_tile(tile: tuple[int, int], weight: float, smoothing: float) -> None:
    by = teacher(weight)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        inputs = [tensor.to(dtype) for tensor in student()]
        ours = functools.partial(align_loss, label_smoothing=smoothing, teacher=by, tile=tile)
        theirs = functools.partial(dense, smoothing=smoothing, by=by)
        exact = value_and_gradients(theirs, *student())
        for one, other in zip(value_and_gradients(ours, *inputs), exact, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    """No divergence and no gradient; so the first term is the Kullback-Leibler divergence and not a cross-entropy."""
    images, texts, temperature = embeds(1), embeds(2), torch.tensor(0.3, dtype=torch.float64)
    same = Teacher(images, texts, 0.3, weight=1.0)
    for found in value_and_gradients(functools.partial(align_loss, teacher=same), images, texts, temperature):
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_a_weight_of_nothing_is_no_teacher() -> None:
    plain, none = (
        value_and_gradients(functools.partial(align_loss, teacher=by), *student()) for by in (None, teacher(0))
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, none, strict=True))


def test_a_pair_that_occurs_twice_is_shared_by_the_teacher() -> None:
    images, texts = (torch.cat([one, one[:2]]) for one in (embeds(1), embeds(2)))
    views = [torch.cat([one, one[:2]]) for one in (embeds(11, TEACHER_WIDTH), embeds(12, TEACHER_WIDTH))]
    by = Teacher(views[0], views[1], 0.2, 0.5)
    inputs = (images, texts, torch.tensor(0.07, dtype=torch.float64))
    ours = value_and_gradients(functools.partial(align_loss, label_smoothing=0.1, teacher=by), *inputs)
    for one, other in zip(
        ours, value_and_gradients(functools.partial(dense, smoothing=0.1, by=by), *inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_memory_is_linear_in_the_batch() -> None:
    """No tensor is larger than a tile or the embeddings, and what the backward pass keeps has the embeddings' shape."""

    images, texts = (embeds(seed, count=512).requires_grad_() for seed in (1, 2))
    views = [embeds(seed, TEACHER_WIDTH, count=512).half() for seed in (11, 12)]
    by = Teacher(views[0], views[1], 0.1, 0.5)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = align_loss(images, texts, 0.07, teacher=by, tile=(32, 32))
    assert 0 < sum(kept) <= 6 * images.nbytes + 2 * 512 * 8  # x, y twice, two pulls; the log-sum-exps
    with Watch() as watch:
        align_loss(images, texts, 0.07, teacher=by, tile=(32, 32)).backward()  # type: ignore[no-untyped-call]  # torch's
    assert 0 < watch.largest <= max(512 * TEACHER_WIDTH * 8, 32 * 32 * 8)
    assert bool(loss.isfinite())


def test_as_on_a_gpu_the_host_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the result is that of the ways of a CPU."""

    def found() -> list[Tensor]:
        return value_and_gradients(functools.partial(align_loss, teacher=teacher(0.5), tile=(4, 5)), *student())

    with Watch() as on_a_cpu:
        theirs = found()
    monkeypatch.setattr(module, "_tile_function", lambda function, _: module._ON_CUDA.get(function, function))
    with Watch() as on_a_gpu:
        ours = found()
    assert on_a_gpu.waits == 0 < on_a_cpu.waits
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def _save_share(path: Path, ranks: Ranks) -> None:
    share = slice(ranks.rank * COUNT // ranks.world_size, (ranks.rank + 1) * COUNT // ranks.world_size)
    images, texts, temperature = student()
    function = functools.partial(align_loss, teacher=teacher(0.3, share), peers=ranks, tile=(4, 5))
    torch.save(value_and_gradients(function, images[share], texts[share], temperature), path / f"{ranks.rank}.pt")


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_teacher_sees_the_pairs_of_all_ranks(tmp_path: Path, world_size: int) -> None:
    launch(functools.partial(_save_share, tmp_path), world_size, 1)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    value, *gradients = value_and_gradients(functools.partial(dense, smoothing=0.1, by=teacher(0.3)), *student())
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for part in parts:
        close(part[0], value)
    close(torch.cat([part[1] for part in parts]), gradients[0])
    close(torch.cat([part[2] for part in parts]), gradients[1])
    close(torch.stack([part[3] for part in parts]).sum(), gradients[2])
