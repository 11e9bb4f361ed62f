"""ALIGN's loss (paper section 4.2): normalised softmax in both directions, the *sum* of the two."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def align_loss(
    image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor | float, label_smoothing: float = 0.1
) -> Tensor:
    """Image-to-text plus text-to-image cross-entropy, each averaged over the pairs of the batch.

    Args:
        image_embeds: (N, D), L2-normalised; N is the global batch.
        text_embeds: (N, D), L2-normalised; row i belongs to image i.
        temperature: > 0, divides the cosine.
        label_smoothing: share of the target spread evenly over all N candidates (paper 0.1).

    Returns:
        Scalar.
    """
    similarity = image_embeds @ text_embeds.T / temperature
    target = torch.arange(len(similarity), device=similarity.device)
    image_to_text = F.cross_entropy(similarity, target, label_smoothing=label_smoothing)
    text_to_image = F.cross_entropy(similarity.T, target, label_smoothing=label_smoothing)
    return image_to_text + text_to_image
