"""Batch-norm's three kinds, in one process and in two that talk through gloo."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.model import ModelConfig
from align.model.batch_norm import BatchNorm2d, SyncBatchNorm2d, batch_norm
from align.model.image_tower import ImageTower, estimate_statistics
from tests.support.training_data import MODEL

EPS = 1e-3


def config(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(MODEL.model_dump() | changes)


def maps(count: int, seed: int = 0) -> Tensor:
    """Far from 0 in relation to their spread, where E[x^2] - mean^2 would cancel."""
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) + 100.0


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_groups_of_a_batch_are_normalised_apart() -> None:
    norm = BatchNorm2d(3, EPS, group=4).train()
    x = maps(12)
    together = norm(x)
    torch.testing.assert_close(together, torch.cat([norm(x[:8]), norm(x[8:])]))
    torch.testing.assert_close(together[:4].mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="multiple of the batch-norm group"):
        norm(x[:6])


@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_a_whole_batch_in_one_process_is_plain_batch_norm(kind: str) -> None:
    assert config(batch_norm=kind).whole_batch and not MODEL.whole_batch
    norm, plain = batch_norm(config(batch_norm=kind), 3).train(), nn.BatchNorm2d(3, EPS).train()
    torch.testing.assert_close(norm(maps(6)), plain(maps(6)))


def in_two(work: Callable[[int], None]) -> None:
    torch.multiprocessing.start_processes(work, nprocs=2, start_method="spawn")


def apart(rank: int, folder: Path, shares: list[int]) -> None:
    """One rank's part: the output of its samples and all gradients of a loss that is the sum over ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=len(shares))
    try:
        norm = weighted(SyncBatchNorm2d(3, EPS))
        x = maps(sum(shares)).split(shares)[rank].clone().requires_grad_()
        out = norm(x)
        (out * weights(sum(shares)).split(shares)[rank]).sum().backward()
        torch.save((out.detach(), x.grad, norm.weight.grad, norm.bias.grad), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def weights(count: int) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(5))


def weighted(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    return norm.train()


@pytest.mark.parametrize("shares", [[4, 4], [5, 2]], ids=["even", "uneven"])
def test_sync_over_two_ranks_equals_one_process(tmp_path: Path, shares: list[int]) -> None:
    in_two(functools.partial(apart, folder=tmp_path, shares=shares))
    plain = weighted(nn.BatchNorm2d(3, EPS))
    x = maps(sum(shares)).requires_grad_()
    out = plain(x)
    (out * weights(sum(shares))).sum().backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for index, whole in ((0, out.detach()), (1, x.grad)):
        torch.testing.assert_close(torch.cat([rank[index] for rank in ranks]), whole, atol=5e-5, rtol=1e-5)
    for index, whole in ((2, plain.weight.grad), (3, plain.bias.grad)):
        torch.testing.assert_close(ranks[0][index] + ranks[1][index], whole, atol=5e-5, rtol=1e-5)
    alone = weighted(SyncBatchNorm2d(3, EPS))(maps(sum(shares)).split(shares)[0])
    assert (alone - ranks[0][0]).abs().max() > 1e-2  # the other rank's samples do count


def tower_gradients(kind: str, pixels: Tensor, draws: Tensor, wanted: Tensor, *, again: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tower = ImageTower(config(batch_norm=kind, stochastic_depth=0.2)).train()
    tower.gradient_checkpointing = "blocks" if again else "none"
    (tower(pixels, draws) * wanted).sum().backward()
    return {name: param.grad for name, param in tower.named_parameters() if param.grad is not None}


def tower_batch(num_blocks: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return pictures(8), torch.rand(8, num_blocks, generator=generator), torch.randn(8, width, generator=generator)


def tower_apart(rank: int, folder: Path, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """One rank's half of the batch, with its messages sent again when blocks are recomputed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    try:
        pixels, draws, wanted = (each.chunk(2)[rank] for each in batch)
        torch.save(tower_gradients("sync", pixels, draws, wanted, again=True), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_a_synchronised_tower_on_two_ranks_has_the_gradients_of_one_process(tmp_path: Path) -> None:
    tower = ImageTower(MODEL)
    batch = tower_batch(tower.num_blocks, tower.width)
    in_two(functools.partial(tower_apart, folder=tmp_path, batch=batch))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = tower_gradients("batch", *batch, again=False)
    assert set(whole) == set(dict(tower.named_parameters()))
    largest = max(float(grad.abs().max()) for grad in whole.values())
    assert sum(float(grad.abs().max()) > 1e-3 * largest for grad in whole.values()) > len(whole) / 2
    for name, grad in whole.items():  # some are 0 but for rounding: a bias that the next batch-norm takes away
        torch.testing.assert_close(ranks[0][name] + ranks[1][name], grad, atol=2e-5 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["group", "batch", "sync"])
def test_running_statistics_move_only_when_they_are_estimated(kind: str) -> None:
    torch.manual_seed(0)
    tower = ImageTower(config(batch_norm=kind))
    norm = tower.embeddings.batchnorm
    assert isinstance(norm, BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    x = pictures(8)
    tower.train()(x)
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    estimate_statistics(tower.eval(), [x[:4], x[4:]])
    with torch.no_grad():
        stem = tower.embeddings.convolution(F.pad(x, (0, 1, 0, 1)))
    torch.testing.assert_close(norm.running_mean, stem.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    halves = torch.stack([stem[:4].var((0, 2, 3)), stem[4:].var((0, 2, 3))])
    torch.testing.assert_close(norm.running_var, halves.mean(0), atol=1e-5, rtol=1e-4)
    assert not tower.training
