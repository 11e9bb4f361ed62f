"""Soft targets from a teacher: another model's similarities of the same batch (MobileCLIP, arXiv:2311.17049).

With u and v the teacher's embeddings of the same images and texts, and t_ij = u_i . v_j / T_t, row i of the student's
scores s is to be like softmax_j t_ij, and column j like softmax_i t_ij, by the Kullback-Leibler divergence:

    (1 - weight) x ALIGN's loss + weight x divergence

As in ALIGN's loss the divergences of the two directions are summed, each averaged over the pairs. MobileCLIP halves
both terms, so `weight`, its lambda, means the same.

Nothing here depends on the student's scores. With w_ij the sum of both softmaxes, the divergence is

    mean_i [ lse_j s_ij + lse_j s_ji ] - 1/N sum_ij w_ij s_ij + 1/N sum (target x log target)

Its first part is that of ALIGN's loss, and its second is linear in s: one more pass over tiles gives sum_j w_ij y_j and
sum_i w_ij x_i, from which come its value and all its gradients. The teacher is constant, so a backward pass computes
nothing more. Of the teacher's N x N matrix only the log-sum-exps are kept.

Pairs that occur twice in a batch need no rule: the teacher gives both the same probability, where the labels know one.

Shapes, as suffixes, are those of `align.training.loss`; E is the width of the teacher's embeddings, whatever D is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from align.training.loss import Peers, dot, log_sum_exps, softmax_tiles


class Pull(NamedTuple):
    """What a teacher does to the student's embeddings; w_ij is the sum of both softmaxes of its scores.

    Attributes:
        images: (B, D) sum_j w_ij y_j, for the images of this process.
        texts: (N, D) sum_i w_ij x_i, over the images of this process.
        score: scalar, float64, sum_ij w_ij x_i . y_j over all processes.
        information: scalar, float64, the sum of target x log(target) over all processes and both directions.
    """

    images: Tensor
    texts: Tensor
    score: Tensor
    information: Tensor


@dataclass(frozen=True)
class Teacher:
    """A teacher's view of this process's share of a batch.

    Attributes:
        image_embeds, text_embeds: (B, E), of any floating type, on the student's device. L2-normalised.
        temperature: > 0, divides the teacher's cosine.
        weight: share of the loss, from 0 to 1.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    temperature: float
    weight: float

    def pull(self, x_BD: Tensor, y_ND: Tensor, peers: Peers, tile: tuple[int, int] | None) -> Pull:
        """See `Pull`. x are the student's image embeddings, y its text embeddings of all processes."""
        u_BE = self.image_embeds.to(x_BD.dtype)
        v_NE = peers.gather(self.text_embeds).to(x_BD.dtype)  # they travel as they are stored
        temperature = torch.full((), self.temperature, dtype=x_BD.dtype, device=x_BD.device)
        log_sums = log_sum_exps(u_BE, v_NE, temperature, peers, tile)
        images_BD, texts_ND, own_BE = torch.zeros_like(x_BD), torch.zeros_like(y_ND), torch.zeros_like(u_BE)
        for row, column, both_RC in softmax_tiles(u_BE, v_NE, temperature, log_sums, tile):
            images_BD[row].addmm_(both_RC, y_ND[column])
            texts_ND[column].addmm_(both_RC.T, x_BD[row])
            own_BE[row].addmm_(both_RC, v_NE[column])  # its product with u is sum_j w_ij t_ij
        rows_sum = dot(u_BE, own_BE) / temperature.double() - log_sums[0].double().sum()
        score, information = peers.sum(torch.stack([dot(x_BD, images_BD), rows_sum]))
        return Pull(images_BD, texts_ND, score, information - log_sums[1].double().sum())
