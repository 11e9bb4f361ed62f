"""ALIGN's loss (paper section 4.2) in memory linear in the batch, and the sigmoid loss (SigLIP) as an alternative.

ALIGN's loss is the normalised softmax in both directions: the *sum* of the two, each averaged over the pairs of the
global batch. With s_ij = x_i . y_j / T, both directions together are

    loss = mean_i [ lse_j s_ij + lse_j s_ji - 2 (1 - eps) s_ii ] - 2 eps / N^2 . (sum_i x_i) . (sum_j y_j) / T

The last term is label smoothing, computed from two sums instead of pair by pair. No N x N matrix ever exists: one pass
over tiles of s computes the log-sum-exp of all rows and columns, and the backward pass computes each tile again. Both
directions share one exponential per element of a tile; two are needed only where one would overflow. The gradient of T
needs no pass: s is linear in x, so dL/dT = -sum_i x_i . dL/dx_i / T.

With several ranks, each has its own rows of x and y, gathers all rows of y, and computes its own rows of s.

Everything is computed in the embeddings' precision, at least float32 (half-precision embeddings are cast) and never
TF32. On CUDA `torch.compile` fuses the element-wise half of a tile into one kernel. There tiles share no exponential:
whether it would overflow is a question that the host would have to wait for, and arithmetic is not what a tile waits
for.

Shapes, as suffixes: B the pairs of this rank, N those of the global batch, D the width of the embeddings, R and C the
rows and columns of a tile. x are image embeddings, y text embeddings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from align.training.ranks.process_group import Ranks

#: Rows and columns of a tile; None takes the default for the device.
Tile = tuple[int, int] | None
#: Rows and columns of a tile: 4 MB of float32 fit into a core's cache and are enough for a fast product.
TILE = (1024, 1024)
#: Rows of a float64 copy.
_COPIED_AT_ONCE = 1024
#: On a GPU.
CUDA_TILE = (4096, 4096)
#: A smaller sum of exponentials, each at most 1, may have lost terms that matter.
_SMALL_SUM = 1e-20
#: One exponential serves shifts of rows and columns that differ by at most this: e^60 and e^-60 fit into float32.
_SHARED_RANGE = 60.0


def align_loss(
    image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor | float, label_smoothing: float = 0.1,
    *, peers: Ranks | None = None, tile: Tile = None,
) -> Tensor:  # fmt: skip
    """Image-to-text plus text-to-image cross-entropy, each averaged over the pairs of the global batch.

    Args:
        image_embeds: (B, D), this rank's share of the N pairs of the global batch. L2-normalised in ALIGN, which
            nothing here relies on.
        text_embeds: (B, D); row i belongs to image i.
        temperature: > 0, divides the cosine.
        label_smoothing: share of the target spread evenly over all candidates (paper 0.1).
        peers: those that have the other rows; None: there are no others.
        tile: changes the result by its rounding only.

    Returns:
        Scalar, the same on every rank: the loss of the global batch. The backward pass gives the exact gradients of
        this rank's rows. The gradient of the temperature is this rank's share; the sum over ranks is exact.
    """
    images, texts, temperature = _precise(image_embeds, text_embeds, temperature)
    arguments = (images, texts, temperature, label_smoothing, peers or Ranks(0, 1, images.device), tile)
    return cast(Tensor, _AlignLoss.apply(*arguments))  # type: ignore[no-untyped-call]  # untyped in torch


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor | float, bias: Tensor | float,
    *, peers: Ranks | None = None, tile: Tile = None,
) -> Tensor:  # fmt: skip
    """SigLIP's loss (Zhai et al. 2023): a logistic loss on each of the N^2 combinations, matching or not.

    Arguments, result and gradients are those of `align_loss`. `bias` is added to the scaled cosine (SigLIP starts at
    -10, with a temperature of 0.1). The sum over all N^2 combinations is divided by N.
    """
    images, texts, temperature, bias = _precise(image_embeds, text_embeds, temperature, bias)
    arguments = (images, texts, temperature, bias, peers or Ranks(0, 1, images.device), tile)
    return cast(Tensor, _SigmoidLoss.apply(*arguments))  # type: ignore[no-untyped-call]  # untyped in torch


def _precise(x_BD: Tensor, y_BD: Tensor, *scalars: Tensor | float) -> list[Tensor]:
    """All in the embeddings' type, which is at least float32: in float16 the sums overflow."""
    x_BD, y_BD = (each.float() if each.dtype in (torch.float16, torch.bfloat16) else each for each in (x_BD, y_BD))
    return [x_BD, y_BD, *(torch.as_tensor(each, dtype=x_BD.dtype, device=x_BD.device) for each in scalars)]


class _AlignLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, y_BD: Tensor, temperature: Tensor, smoothing: float, peers: Ranks, tile: Tile
    ) -> Tensor:
        y_ND = peers.gather(y_BD)
        count, width = len(y_ND), x_BD.shape[1]
        row_lse_B, column_lse_N = (x_BD.new_full((size,), -math.inf) for size in (len(x_BD), count))
        log_sums = _tile_function(_log_sums, x_BD)
        for row, column, scores_RC in _tiles(x_BD, y_ND, temperature, tile):
            row_lse_B[row], column_lse_N[column] = log_sums(scores_RC, row_lse_B[row], column_lse_N[column])
        top_N = peers.max(column_lse_N)  # until here each rank has added its own rows only
        column_lse_N = peers.sum((column_lse_N - top_N).exp()).log() + top_N
        sums = peers.sum(torch.cat([_sum(x_BD), row_lse_B.double().sum()[None], dot(x_BD, y_BD)[None]]))
        x_sum_D, rows_sum, own_sum = sums[:width], sums[width], sums[width + 1]
        y_sum_D = _sum(y_ND)
        own, smooth = own_sum / temperature.double(), x_sum_D @ y_sum_D / temperature.double() / count
        loss = (rows_sum + column_lse_N.double().sum() - (1 - smoothing) * 2 * own - 2 * smoothing * smooth) / count
        sums_of_embeds = x_sum_D.to(x_BD.dtype), y_sum_D.to(x_BD.dtype)
        ctx.save_for_backward(x_BD, y_BD, y_ND, temperature, *sums_of_embeds, row_lse_B, column_lse_N)
        ctx.smoothing, ctx.peers, ctx.tile = smoothing, peers, tile
        return loss.to(x_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, y_BD, y_ND, temperature, x_sum_D, y_sum_D, row_lse_B, column_lse_N = ctx.saved_tensors
        count, smoothing = len(y_ND), ctx.smoothing
        dx_BD, dy_ND = torch.zeros_like(x_BD), torch.zeros_like(y_ND)
        softmaxes = _tile_function(_softmaxes, x_BD)
        for row, column, scores_RC in _tiles(x_BD, y_ND, temperature, ctx.tile):
            both_RC = softmaxes(scores_RC, row_lse_B[row], column_lse_N[column])
            dx_BD[row].addmm_(both_RC, y_ND[column])
            dy_ND[column].addmm_(both_RC.T, x_BD[row])
        dy_BD = ctx.peers.scatter_sum(dy_ND)
        scale, own, smooth = grad / (count * temperature), 2 * (1 - smoothing), 2 * smoothing / count
        dx_BD = dx_BD.sub_(y_BD, alpha=own).sub_(smooth * y_sum_D).mul_(scale)
        dy_BD = dy_BD.sub_(x_BD, alpha=own).sub_(smooth * x_sum_D).mul_(scale)
        return dx_BD, dy_BD, _temperature_gradient(x_BD, dx_BD, temperature), None, None, None


class _SigmoidLoss(torch.autograd.Function):
    """One pass gives loss and gradients: the gradient of a tile does not depend on the other tiles."""

    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, y_BD: Tensor, temperature: Tensor, bias: Tensor, peers: Ranks, tile: Tile
    ) -> Tensor:
        y_ND = peers.gather(y_BD)
        count = len(y_ND)
        dx_BD, dy_ND = torch.zeros_like(x_BD), torch.zeros_like(y_ND)
        sums = x_BD.new_zeros(2, dtype=torch.float64)
        sigmoids = _tile_function(_sigmoids, x_BD)
        for row, column, scores_RC in _tiles(x_BD, y_ND, temperature, tile):
            softplus_sum, probability_RC = sigmoids(scores_RC, bias)
            sums += torch.stack([softplus_sum, probability_RC.sum()]).double()
            dx_BD[row].addmm_(probability_RC, y_ND[column])
            dy_ND[column].addmm_(probability_RC.T, x_BD[row])
        own = dot(x_BD, y_BD) / temperature.double() + len(x_BD) * bias.double()
        loss = peers.sum(sums[0] - own) / count
        scale = 1 / (count * temperature)
        dx_BD, dy_BD = dx_BD.sub_(y_BD).mul_(scale), peers.scatter_sum(dy_ND).sub_(x_BD).mul_(scale)
        d_bias = ((sums[1] - len(x_BD)) / count).to(x_BD.dtype)
        ctx.save_for_backward(dx_BD, dy_BD, _temperature_gradient(x_BD, dx_BD, temperature), d_bias)
        return loss.to(x_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx_BD, dy_BD, d_temperature, d_bias = ctx.saved_tensors
        return grad * dx_BD, grad * dy_BD, grad * d_temperature, grad * d_bias, None, None


def _temperature_gradient(x_BD: Tensor, dx_BD: Tensor, temperature: Tensor) -> Tensor:
    return (-dot(x_BD, dx_BD) / temperature.double()).to(temperature.dtype)


def _sum(x_BD: Tensor) -> Tensor:
    """(B, D) -> (D,) float64, some rows at a time: a float64 copy of all takes twice their memory."""
    return torch.stack([rows.double().sum(0) for rows in torch.split(x_BD, _COPIED_AT_ONCE)]).sum(0)


def dot(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """The float64 sum of x * y, some rows at a time."""
    parts = zip(torch.split(x_BD, _COPIED_AT_ONCE), torch.split(y_BD, _COPIED_AT_ONCE), strict=True)
    return torch.stack([(left.double() * right).sum() for left, right in parts]).sum()


def _tiles(x_BD: Tensor, y_ND: Tensor, temperature: Tensor, tile: Tile) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields (rows, columns, their scores x_i . y_j / T); the caller may overwrite the scores, until the next tile."""
    height, width = tile or (CUDA_TILE if x_BD.is_cuda else TILE)
    buffer = x_BD.new_empty(min(height, len(x_BD)) * min(width, len(y_ND)))
    matmul = torch.backends.cuda.matmul
    # restored after the last tile, so that the caller's products use no TF32 either
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        for top in range(0, len(x_BD), height):
            rows = slice(top, min(top + height, len(x_BD)))
            scaled_RD = x_BD[rows] / temperature
            for left in range(0, len(y_ND), width):
                columns = slice(left, min(left + width, len(y_ND)))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                scores_RC = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(scaled_RD, y_ND[columns].T, out=scores_RC)
                yield rows, columns, scores_RC
    finally:
        matmul.allow_tf32 = before


def _log_sums(scores_RC: Tensor, rows_R: Tensor, columns_C: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exps so far of a tile's rows and columns, with this tile added."""
    top = scores_RC.max()
    exponentials_RC = (scores_RC - top).exp_()
    row_sums_R, column_sums_C = exponentials_RC.sum(1), exponentials_RC.sum(0)
    # A row far below the tile's maximum would lose its terms. Such tiles are rare and computed again.
    if min(float(row_sums_R.min()), float(column_sums_C.min())) < _SMALL_SUM:
        return _log_sums_apart(scores_RC, rows_R, columns_C)
    return torch.logaddexp(rows_R, row_sums_R.log_() + top), torch.logaddexp(columns_C, column_sums_C.log_() + top)


def _log_sums_apart(scores_RC: Tensor, rows_R: Tensor, columns_C: Tensor) -> tuple[Tensor, Tensor]:
    """`_log_sums` for any scores, without a question that the host waits for."""
    return torch.logaddexp(rows_R, scores_RC.logsumexp(1)), torch.logaddexp(columns_C, scores_RC.logsumexp(0))


def _softmaxes(scores_RC: Tensor, rows_R: Tensor, columns_C: Tensor) -> Tensor:
    """exp(s - row's log-sum-exp) + exp(s - column's), over a tile. Overwrites the scores."""
    bound = torch.minimum(rows_R.max(), columns_C.max())  # no score is larger
    if float(bound - torch.minimum(rows_R.min(), columns_C.min())) > _SHARED_RANGE:
        return _softmaxes_apart(scores_RC, rows_R, columns_C)
    weights_RC = (bound - rows_R).exp_()[:, None] + (bound - columns_C).exp_()
    return scores_RC.sub_(bound).exp_().mul_(weights_RC)


def _softmaxes_apart(scores_RC: Tensor, rows_R: Tensor, columns_C: Tensor) -> Tensor:
    """`_softmaxes` for any scores, without a question that the host waits for."""
    return (scores_RC - rows_R[:, None]).exp_().add_((scores_RC - columns_C).exp_())


def _sigmoids(scores_RC: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of softplus(s + b) and, over the tile, sigmoid(s + b). Overwrites the scores."""
    scores_RC.add_(bias)
    return F.softplus(scores_RC).sum(), scores_RC.sigmoid_()


#: What a tile runs on CUDA instead of the function for a CPU.
_ON_CUDA: dict[Callable[..., Any], Callable[..., Any]] = {_log_sums: _log_sums_apart, _softmaxes: _softmaxes_apart}


def _tile_function(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """The function for a tile: eager; on CUDA compiled, unless the recipe says otherwise (`accelerated`)."""
    return _compiled(_ON_CUDA.get(function, function)) if like.is_cuda else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
    return compiled
