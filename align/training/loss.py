"""ALIGN's loss (paper section 4.2) in memory linear in the batch, and the sigmoid loss (SigLIP) as an alternative.

ALIGN's is the normalised softmax in both directions, the *sum* of the two, each averaged over the pairs of the global
batch. With s_ij = x_i . y_j / T, and both directions put together:

    loss = mean_i [ lse_j s_ij + lse_j s_ji - 2 (1 - eps) s_ii ] - 2 eps / N^2 . (sum_i x_i) . (sum_j y_j) / T

The last term is what label smoothing comes to, without a look at any pair. No N x N matrix ever exists: a pass over
tiles of s finds the log-sum-exp of all rows and columns, and in backward a second pass computes each tile anew. A tile
costs one exponential an element, shared by both directions; only where the range of a float would not hold both are
there two. The gradient of T needs no pass: s is linear in x, so that dL/dT = -sum_i x_i . dL/dx_i / T.

Over several processes each one has its own rows of x and y, sees all rows of y, and works on its rows of s alone.

Everything is computed in the embeddings' own precision, which is float32 at least, and never TF32. The eager tiles are
the reference; on CUDA the element-wise half of a tile is compiled into one kernel by `torch.compile`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Rows and columns of a tile: 4 MB of float32, which a core's cache holds, and large enough for a fast product.
TILE = (1024, 1024)
#: ... on a GPU.
CUDA_TILE = (4096, 4096)
#: A sum of exponentials, each at most 1, that is smaller than this may have lost terms that matter.
_SMALL_SUM = 1e-20
#: Shifts of rows and columns that differ by no more are made by one exponential: e^60 and its inverse are floats.
_SHARED_RANGE = 60.0


class Peers(Protocol):
    """The processes that share a batch; see `align.training.process_group.Ranks`. None of it is differentiable."""

    def gather(self, tensor: Tensor) -> Tensor:
        """(B, ...) of this process -> (B * world_size, ...) of all, in order of ranks."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over all processes."""

    def max(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over all processes."""

    def scatter_sum(self, tensor: Tensor) -> Tensor:
        """(B * world_size, ...) of each -> this process's B rows of their sum."""


class Alone:
    """One process."""

    def gather(self, tensor: Tensor) -> Tensor:
        """See `Peers`."""
        return tensor

    sum = max = scatter_sum = gather


def align_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    temperature: Tensor | float,
    label_smoothing: float = 0.1,
    *,
    peers: Peers | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """Image-to-text plus text-to-image cross-entropy, each averaged over the pairs of the global batch.

    Args:
        image_embeds: (B, D), this process's share of the N pairs of the global batch; L2-normalised in ALIGN, though
            nothing here relies on it.
        text_embeds: (B, D); row i belongs to image i.
        temperature: > 0, divides the cosine.
        label_smoothing: share of the target spread evenly over all N candidates (paper 0.1).
        peers: the processes that have the other rows; None: these are all.
        tile: rows and columns that are looked at together; None: what suits the device. No result depends on it beyond
            rounding.

    Returns:
        Scalar, the same on every process: the loss of the whole batch. Its backward pass gives the exact gradients of
        this process's rows; those of the temperature add up over the processes to the whole.
    """
    temperature = torch.as_tensor(temperature, dtype=image_embeds.dtype, device=image_embeds.device)
    arguments = (image_embeds, text_embeds, temperature, label_smoothing, peers or Alone(), tile)
    return cast(Tensor, _AlignLoss.apply(*arguments))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    temperature: Tensor | float,
    bias: Tensor | float,
    *,
    peers: Peers | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023): every pair by itself is told apart from every mismatch, by a logistic loss.

    Arguments, result and gradients as of `align_loss`; `bias` is added to the scaled cosine (SigLIP starts at -10, with
    a temperature of 0.1). The sum over all N^2 combinations is divided by N.
    """
    temperature = torch.as_tensor(temperature, dtype=image_embeds.dtype, device=image_embeds.device)
    bias = torch.as_tensor(bias, dtype=image_embeds.dtype, device=image_embeds.device)
    arguments = (image_embeds, text_embeds, temperature, bias, peers or Alone(), tile)
    return cast(Tensor, _SigmoidLoss.apply(*arguments))  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _AlignLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, temperature: Tensor, smoothing: float, peers: Peers,
        tile: tuple[int, int] | None,
    ) -> Tensor:  # fmt: skip
        everyone = peers.gather(y)
        count = len(everyone)
        rows = x.new_full((len(x),), -math.inf)
        columns = x.new_full((count,), -math.inf)
        log_sums = _step(_log_sums, x)
        for row, column, scores in _tiles(x, everyone, temperature, tile):
            rows[row], columns[column] = log_sums(scores, rows[row], columns[column])
        top = peers.max(columns)
        columns = peers.sum((columns - top).exp()).log() + top
        sums = torch.cat([_sum(x), rows.double().sum()[None], _dot(x, y)[None]])
        sums = peers.sum(sums)
        x_sum, rows_sum, own_sum = sums[:-2], sums[-2], sums[-1] / temperature.double()
        y_sum = _sum(everyone)
        smooth = x_sum @ y_sum / temperature.double() / count
        loss = (rows_sum + columns.double().sum() - 2 * (1 - smoothing) * own_sum - 2 * smoothing * smooth) / count
        ctx.save_for_backward(x, y, everyone, temperature, rows, columns, x_sum.to(x.dtype), y_sum.to(x.dtype))
        ctx.smoothing, ctx.peers, ctx.tile = smoothing, peers, tile
        return loss.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, everyone, temperature, rows, columns, x_sum, y_sum = ctx.saved_tensors
        count = len(everyone)
        dx, dy = torch.zeros_like(x), torch.zeros_like(everyone)
        softmaxes = _step(_softmaxes, x)
        for row, column, scores in _tiles(x, everyone, temperature, ctx.tile):
            both = softmaxes(scores, rows[row], columns[column])
            dx[row].addmm_(both, everyone[column])
            dy[column].addmm_(both.T, x[row])
        dy = ctx.peers.scatter_sum(dy)
        scale = grad / (count * temperature)
        own, smooth = 2 * (1 - ctx.smoothing), 2 * ctx.smoothing / count
        dx = dx.sub_(y, alpha=own).sub_(smooth * y_sum).mul_(scale)
        dy = dy.sub_(x, alpha=own).sub_(smooth * x_sum).mul_(scale)
        return dx, dy, _temperature_gradient(x, dx, temperature), None, None, None


class _SigmoidLoss(torch.autograd.Function):
    """Nothing has to be known of all tiles before the gradient of one, so one pass gives both."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, temperature: Tensor, bias: Tensor, peers: Peers, tile: tuple[int, int] | None
    ) -> Tensor:
        everyone = peers.gather(y)
        count = len(everyone)
        dx, dy = torch.zeros_like(x), torch.zeros_like(everyone)
        sums = x.new_zeros(2, dtype=torch.float64)
        sigmoids = _step(_sigmoids, x)
        for row, column, scores in _tiles(x, everyone, temperature, tile):
            softplus_sum, probability = sigmoids(scores, bias)
            sums += torch.stack([softplus_sum, probability.sum()]).double()
            dx[row].addmm_(probability, everyone[column])
            dy[column].addmm_(probability.T, x[row])
        own = _dot(x, y) / temperature.double() + len(x) * bias.double()
        loss = peers.sum(sums[0] - own) / count
        scale = 1 / (count * temperature)
        dx, dy = dx.sub_(y).mul_(scale), peers.scatter_sum(dy).sub_(x).mul_(scale)
        d_bias = ((sums[1] - len(x)) / count).to(x.dtype)
        ctx.save_for_backward(dx, dy, _temperature_gradient(x, dx, temperature), d_bias)
        return loss.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy, d_temperature, d_bias = ctx.saved_tensors
        return grad * dx, grad * dy, grad * d_temperature, grad * d_bias, None, None


def _temperature_gradient(x: Tensor, dx: Tensor, temperature: Tensor) -> Tensor:
    return (-_dot(x, dx) / temperature.double()).to(temperature.dtype)


def _sum(x: Tensor) -> Tensor:
    """(N, D) -> (D,) float64, some rows at a time: a copy of all in float64 would be twice the embeddings."""
    return torch.stack([part.double().sum(0) for part in torch.split(x, TILE[0])]).sum(0)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """The float64 sum of x * y, in the same way."""
    parts = zip(torch.split(x, TILE[0]), torch.split(y, TILE[0]), strict=True)
    return torch.stack([(left.double() * right).sum() for left, right in parts]).sum()


def _tiles(
    x: Tensor, y: Tensor, temperature: Tensor, size: tuple[int, int] | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields (rows, columns, x_i . y_j / T of them); the scores are the caller's to overwrite, until the next tile."""
    height, width = size or (CUDA_TILE if x.is_cuda else TILE)
    buffer = x.new_empty(min(height, len(x)) * min(width, len(y)))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False  # until the last tile: for what the caller does with one, too
    try:
        for top in range(0, len(x), height):
            rows = slice(top, min(top + height, len(x)))
            scaled = x[rows] / temperature
            for left in range(0, len(y), width):
                columns = slice(left, min(left + width, len(y)))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                scores = buffer[: shape[0] * shape[1]].view(shape)
                yield rows, columns, torch.mm(scaled, y[columns].T, out=scores)
    finally:
        matmul.allow_tf32 = before


def _log_sums(scores: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exps so far of a tile's rows and columns, with this tile added."""
    top = scores.max()
    exponentials = (scores - top).exp_()
    row_sums, column_sums = exponentials.sum(1), exponentials.sum(0)
    # a row that is small beside the tile's maximum would lose its terms: such tiles are rare, and looked at again
    if min(float(row_sums.min()), float(column_sums.min())) < _SMALL_SUM:
        return torch.logaddexp(rows, scores.logsumexp(1)), torch.logaddexp(columns, scores.logsumexp(0))
    return torch.logaddexp(rows, row_sums.log_() + top), torch.logaddexp(columns, column_sums.log_() + top)


def _softmaxes(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """exp(s - row's log-sum-exp) + exp(s - column's), over a tile. Overwrites the scores."""
    bound = torch.minimum(rows.max(), columns.max())  # no score is larger
    if float(bound - torch.minimum(rows.min(), columns.min())) > _SHARED_RANGE:
        return (scores - rows[:, None]).exp_().add_(scores.sub_(columns).exp_())
    weights = (bound - rows).exp_()[:, None] + (bound - columns).exp_()
    return scores.sub_(bound).exp_().mul_(weights)


def _sigmoids(scores: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of softplus(s + b) and, over the tile, sigmoid(s + b). Overwrites the scores."""
    scores.add_(bias)
    return F.softplus(scores).sum(), scores.sigmoid_()


def _step(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """What is done to a tile: as it stands, or compiled on CUDA."""
    return _compiled(function) if like.is_cuda else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)
