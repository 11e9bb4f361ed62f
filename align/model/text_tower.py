"""BERT's encoder (Devlin et al., NAACL 2019, arXiv 1810.04805), whose output for [CLS] is the text (paper section 4.1).

It computes what transformers' `BertModel` computes through SDPA, and has its names in the state dict, but no pooler:
nothing uses it, so it gets no gradient, and plain DDP fails.

Decisions (the paper is silent): no dropout. Where the recipe names no other deviation, weights start from
N(0, 1 / width) instead of BERT's N(0, 0.02^2), which equals it at width 2,500. With 0.02 the [CLS] output of a narrow
tower hardly depends on its words, and LAMB, whose steps follow the norm of the weights, changes that only slowly. The
demo's positions and token types start from a tenth of that: an alt-text is mostly a bag of words, and at full scale
half of a token's input is its position.

Shapes, as suffixes: B texts, T tokens, F width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from align.config.model import Checkpointing, ModelConfig, TextTowerShape
from align.model.presets import text_shape

_LAYER_NORM_EPS = 1e-12
_PAD_ID = 0  #: its embedding is 0 at the start and gets no gradient
_TOKEN_TYPES = 2  #: as BERT has; here all tokens are of the first type


class TextTower(nn.Module):
    """Token ids -> hidden states of the last layer.

    Attributes:
        width: of the hidden states.
        gradient_checkpointing: with `blocks` the backward pass of training computes layers again; only their input is
            kept. `cheap` has a meaning only for the image tower.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, *, init_std: float | None = None, position_init_scale: float = 1.0
    ) -> None:
        """Initial weights come from torch's global generator.

        Args:
            config: the model section.
            vocab_size: rows of the word embedding.
            init_std: of all tables and matrices; None: 1 / sqrt(width).
            position_init_scale: of position and token-type embeddings, relative to word embeddings.
        """
        super().__init__()
        shape = text_shape(config)
        self.embeddings = _Embeddings(shape.width, vocab_size, config.max_tokens)
        self.encoder = _Encoder(shape)
        self.gradient_checkpointing: Checkpointing = "none"
        self.width = shape.width
        self._initialise(shape.width**-0.5 if init_std is None else init_std, position_init_scale)

    @torch.no_grad()
    def _initialise(self, std: float, position_scale: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, std)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
        tables = self.embeddings
        tables.word_embeddings.weight[_PAD_ID].zero_()
        for table in (tables.position_embeddings, tables.token_type_embeddings):
            table.weight.mul_(position_scale)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids to hidden states.

        Args:
            input_ids: (B, T) int64, T at most `config.max_tokens`.
            attention_mask: (B, T), 1 for tokens and 0 for padding; None: no padding.

        Returns:
            (B, T, F); rows of padding have no meaning.
        """
        mask = None if attention_mask is None else _attended(attention_mask)
        hidden_BTF: Tensor = self.embeddings(input_ids)
        for layer in cast(Iterable[_Layer], self.encoder.layer):
            layer.again = self.gradient_checkpointing == "blocks"
            hidden_BTF = layer(hidden_BTF, mask)
        return hidden_BTF

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, F): the last layer's output for [CLS]."""
        hidden_BTF: Tensor = self(input_ids, attention_mask)
        return hidden_BTF[:, 0]


def _attended(mask_BT: Tensor) -> Tensor | None:
    """(B, 1, 1, T) bool, for all heads and queries; None, which is faster, if there is no padding.

    Only a CPU checks for padding: the host would wait for a GPU, and an exported program must hold for any mask.
    """
    mask_BT = mask_BT.bool()
    if mask_BT.device.type == "cpu" and not torch.compiler.is_exporting() and bool(mask_BT.all()):
        return None
    return mask_BT[:, None, None, :]


class _Embeddings(nn.Module):
    """A token's word, position and type, added and normalised."""

    def __init__(self, width: int, vocab_size: int, max_tokens: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=_PAD_ID)
        self.position_embeddings = nn.Embedding(max_tokens, width)
        self.token_type_embeddings = nn.Embedding(_TOKEN_TYPES, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)

    def forward(self, ids_BT: Tensor) -> Tensor:
        places_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        words_BTF = self.word_embeddings(ids_BT) + self.token_type_embeddings(torch.zeros_like(ids_BT))
        return cast(Tensor, self.LayerNorm(words_BTF + self.position_embeddings(places_1T)))


class _Encoder(nn.Module):
    """Holds the layers under the names that checkpoints have."""

    def __init__(self, shape: TextTowerShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(shape.width, shape.heads) for _ in range(shape.layers))


class _Layer(nn.Module):
    """Attention and a feed-forward part four times as wide, each added to its input and normalised after that.

    Attributes:
        again: whether the backward pass computes the layer again, so that only its input is kept.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.intermediate = _Intermediate(width)
        self.output = _Output(4 * width, width)
        self.again = False

    def forward(self, hidden_BTF: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.again and self.training and torch.is_grad_enabled():
            # no random numbers are drawn, so no generator state must be kept
            again = checkpoint(self._compute, hidden_BTF, mask, use_reentrant=False, preserve_rng_state=False)
            return cast(Tensor, again)
        return self._compute(hidden_BTF, mask)

    def _compute(self, hidden_BTF: Tensor, mask: Tensor | None) -> Tensor:
        attended_BTF = self.attention(hidden_BTF, mask)
        return cast(Tensor, self.output(self.intermediate(attended_BTF), attended_BTF))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self = _SelfAttention(width, heads)
        self.output = _Output(width, width)

    def forward(self, hidden_BTF: Tensor, mask: Tensor | None) -> Tensor:
        return cast(Tensor, self.output(self.self(hidden_BTF, mask), hidden_BTF))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head_width = width // heads

    def forward(self, hidden_BTF: Tensor, mask: Tensor | None) -> Tensor:
        of_heads = *hidden_BTF.shape[:-1], -1, self.head_width
        query, key, value = (
            part(hidden_BTF).view(of_heads).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.head_width**-0.5)
        return found.transpose(1, 2).reshape(hidden_BTF.shape)


class _Intermediate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 4 * width)

    def forward(self, hidden_BTF: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden_BTF))


class _Output(nn.Module):
    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_LAYER_NORM_EPS)

    def forward(self, found: Tensor, residual_BTF: Tensor) -> Tensor:
        return cast(Tensor, self.LayerNorm(self.dense(found) + residual_BTF))
