"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): the updates of matrices, made nearly orthogonal.

A gradient's few large singular values drown its many small ones. Muon brings all of them near 1, so that a step
teaches each direction of a matrix about as much. All else is that of `align.training.lamb`: the trust ratio, which
makes a step relative to its weights, the weight decay, and the steps of what is not a layer's matrix.

Decisions: the running mean is Nesterov's, a convolution is the matrix (channels out) x (channels in x height x width),
and embeddings and depthwise convolutions keep LAMB's steps: a row of them is a word or a channel of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Of the post: an odd polynomial. Five repetitions bring singular values from 0.0015 to 1 to between 0.68 and 1.21;
#: smaller ones grow by up to 485 times.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_STEPS = 5


def layer_matrices(model: nn.Module) -> set[Tensor]:
    """The weights that Muon steps: of linear layers, and of convolutions over all channels."""
    return {
        layer.weight for layer in model.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }  # fmt: skip


def muon_updates(grads: list[Tensor], means: list[Tensor], beta: float) -> list[Tensor]:
    """The updates of some layers' weights, before trust ratio and rate; as matrices their singular values are near 1.

    The gradients have at least two dimensions, and the updates the same. Their running means, of decay `beta`, move.
    """
    torch._foreach_lerp_(means, grads, 1.0 - beta)
    return [orthogonalised(ahead) for ahead in torch._foreach_lerp(grads, means, beta)]


def orthogonalised(update: Tensor) -> Tensor:
    """U V' of an update U S V', nearly, by a Newton-Schulz iteration.

    The products are in bfloat16 on a GPU, as the post has them, and in float32 on a CPU. An update of zeros stays so.
    """
    matrix = update.flatten(1)
    if wide := matrix.shape[0] > matrix.shape[1]:  # the products are of the shorter side
        matrix = matrix.T
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / x.norm().clamp_min(torch.finfo(torch.float32).tiny)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_NUM_STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=third, alpha=fifth), x, beta=first)
    return (x.T if wide else x).reshape(update.shape).to(update.dtype)
