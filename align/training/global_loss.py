"""The global contrastive loss (SogCLR, Yuan et al. 2022; version 3 of FastCLIP, Wei et al. 2024), for small batches.

A batch of N pairs compares a pair with N - 1 others only, and the logarithm of their sum is biased. Here each training
sample keeps a running estimate u of that mean for its image and for its text, through all batches that it is in, and u
takes the place of the batch's own. With s_ij the cosine of image i and text j, T the temperature, and g as image sees
texts (text sees images likewise, with s_ji):

    g_i = mean_{j != i} exp((s_ij - s_ii) / T)        u_i = (1 - gamma) u_i + gamma g_i, at first g_i, before the step
    loss = T . mean_i log(eps + u_i) + rho T, in both directions, where log(eps + u) has the gradient g' / (eps + u)

The gradient of T is that of the whole: it is 0 where the Kullback-Leibler divergence between the softmax over the
others and an even distribution is rho. Label smoothing adds what it adds to ALIGN's loss, T . label_smoothing .
mean_ij (s_ii - s_ij) / T, in both directions; so it does not move T.

All is computed in float64, and of u its logarithm is kept, which no temperature makes overflow. The N x N matrix exists
as a whole, on every rank.

Shapes, as suffixes: B the pairs of this rank, N those of the global batch, S training samples, D width of embeddings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.config.recipe import Recipe
from align.training.ranks.process_group import Ranks


def new_estimates(recipe: Recipe, num_samples: int, device: torch.device) -> Tensor | None:
    """(S, 2) float64 log u of each sample's image and text, -inf: not seen yet. None: the recipe needs none.

    Fine-tuning, which inherits the loss, has too few steps to estimate anything, and uses ALIGN's.
    """
    if recipe.loss != "global" or recipe.section != "pretrain":
        return None
    return torch.full((num_samples, 2), -math.inf, dtype=torch.float64, device=device)


def global_loss(
    image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor, numbers: Tensor, estimates: Tensor, recipe: Recipe,
    *, peers: Ranks | None = None,
) -> Tensor:  # fmt: skip
    """The loss, and its gradients as `align_loss` has them: exact for own rows, this rank's share of the temperature's.

    Args:
        image_embeds, text_embeds: (B, D), this rank's share of the N pairs of the global batch; L2-normalised.
        temperature: > 0, divides the cosine.
        numbers: (B,) int64, the number of each pair's sample in its split.
        estimates: (S, 2) of `new_estimates`, which changes for the samples of the batch, alike on all ranks.
        recipe: rho, gamma, eps, and label smoothing.
        peers: those that have the other rows; None: there are no others.
    """
    peers = peers or Ranks(0, 1, image_embeds.device)
    numbers_N = peers.gather(numbers)
    images_ND, texts_ND = (_all_rows(each.double(), peers) for each in (image_embeds, text_embeds))
    whole = temperature.detach().double()
    shared = whole + (temperature.double() - whole) / peers.world_size  # its gradient is a share, its value is not
    cosines_NN = images_ND @ texts_ND.T
    own_N, count = cosines_NN.diagonal(), len(cosines_NN)
    gaps_2NN = (torch.stack([cosines_NN, cosines_NN.T]) - own_N[:, None]) / shared
    itself_NN = torch.eye(count, dtype=torch.bool, device=cosines_NN.device)
    log_g_2N = gaps_2NN.masked_fill(itself_NN, -math.inf).logsumexp(2) - math.log(count - 1)
    log_u_2N = _updated(estimates, numbers_N, log_g_2N.detach(), recipe.global_gamma)
    log_sums_2N = torch.logaddexp(log_u_2N, torch.full_like(log_u_2N, math.log(recipe.global_eps)))
    value = shared * (log_sums_2N.mean(1).sum() + 2 * recipe.global_rho)
    value = value + 2 * recipe.label_smoothing * (own_N.mean() - cosines_NN.mean())
    followed = whole * (log_g_2N - log_sums_2N).exp().mean(1).sum()  # of which the gradient counts, not the value
    return (value + followed - followed.detach()).to(temperature.dtype)


def _all_rows(rows_BD: Tensor, peers: Ranks) -> Tensor:
    """(N, D): those of all ranks, of which a gradient flows to this rank's own."""
    parts = list(peers.gather(rows_BD.detach()).chunk(peers.world_size))
    parts[peers.rank] = rows_BD
    return torch.cat(parts)


def _updated(estimates: Tensor, numbers_N: Tensor, log_g_2N: Tensor, gamma: float) -> Tensor:
    """(2, N) log u with this batch's part, which is also kept."""
    log_kept, log_added = torch.tensor([1 - gamma, gamma], dtype=torch.float64).log().tolist()  # -inf for gamma 1
    known_2N = estimates[numbers_N].T
    log_u_2N = torch.logaddexp(known_2N + log_kept, log_g_2N + log_added).where(~known_2N.isneginf(), log_g_2N)
    estimates[numbers_N] = log_u_2N.T
    return log_u_2N
