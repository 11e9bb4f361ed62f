"""The dual encoder (paper section 4.1): EfficientNet and BERT towers, cosine on top, one learned temperature.

Names in the state dict are those of `transformers.AlignModel`. Differences from it:

* the text tower has no pooler, which nothing uses (without a gradient, plain DDP dies of it), and attends through SDPA;
* both towers have gradient checkpointing (upstream: the text tower only);
* the image tower gets a projection where its width is not the joint width (the paper's ablations at width 640);
* the temperature is exp(log_temperature): positive by construction.

Decisions (the paper is silent): no dropout in the text tower; its weights start from N(0, 1 / width) in place of BERT's
N(0, 0.02^2), which is that at width 2,500. With 0.02 a narrow tower starts out blind to its words ([CLS] hardly hears
them), and LAMB, whose steps follow the norm of the weights, keeps it so for long. Positions and token types start from
a tenth of that: an alt-text is a bag of words first, and at full size half of what a token says is where it stands.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel

from align.config.model import ModelConfig
from align.errors import DataError, FormatError
from align.files import to_json, write_text
from align.model.image_tower import ImageTower
from align.model.presets import text_shape

SCHEMA_VERSION = 2

#: Size of position and token-type embeddings at the start, relative to those of words.
POSITION_SCALE = 0.1

#: On a CPU so many texts of like length are encoded together: fewer lose more in small products than they save.
CPU_TEXTS = 16


class DualEncoder(nn.Module):
    """Image and text towers into one unit sphere.

    Attributes:
        config: the model section it was built from.
        vocab_size: rows of the word embedding.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.vision_model = ImageTower(config)
        self.text_model = BertModel(text_config(config, vocab_size), add_pooling_layer=False)
        with torch.no_grad():
            for table in (
                self.text_model.embeddings.position_embeddings, self.text_model.embeddings.token_type_embeddings,
            ):  # fmt: skip
                table.weight.mul_(POSITION_SCALE)
        self.text_projection = nn.Linear(text_shape(config).width, config.embed_width)
        nn.init.xavier_uniform_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)
        native = self.vision_model.width == config.embed_width
        self.vision_projection: nn.Module = (
            nn.Identity() if native else nn.Linear(self.vision_model.width, config.embed_width)
        )
        self.log_temperature = nn.Parameter(torch.tensor(float(config.temperature_init)).log())
        self.logit_bias: nn.Parameter | None = None  #: of the sigmoid loss
        if config.logit_bias_init is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init)))

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training keeps only the input of each MBConv block and BERT layer, and computes them again backward.

        Loss and gradients stay the same; off in a new model.
        """
        return self.vision_model.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.vision_model.gradient_checkpointing = on
        recompute = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
        layers: list[Any] = list(self.text_model.encoder.layer)
        for layer in layers:  # by hand: the switch of `PreTrainedModel` changed its name within v5
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = recompute

    @property
    def temperature(self) -> Tensor:
        """Scalar > 0; divides the cosine. Learned, shared by both directions."""
        return self.log_temperature.exp()

    def encode_image(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images to embeddings.

        Args:
            pixels: (B, 3, H, W) float, values in [-1, 1].
            draws: (B, num_blocks) uniform numbers for stochastic depth; None drops nothing.

        Returns:
            (B, embed_width) float32, L2-normalised.
        """
        return F.normalize(self.vision_projection(self.vision_model(pixels, draws)).float(), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids to embeddings. On a CPU hardly any padding is computed, whatever the texts' lengths and order.

        Args:
            input_ids: (B, T) int64, T at most `config.max_tokens`.
            attention_mask: (B, T), 1 where a token stands and 0 where padding does.

        Returns:
            (B, embed_width) float32, L2-normalised.
        """
        if torch.compiler.is_exporting() or input_ids.device.type != "cpu":
            hidden = self._read(input_ids, attention_mask)
        else:
            ends = (attention_mask != 0).long() * torch.arange(1, input_ids.shape[1] + 1)
            lengths, order = ends.amax(dim=1).clamp(min=1).sort(stable=True)
            parts = [
                self._read(input_ids[rows, : int(most[-1])], attention_mask[rows, : int(most[-1])])
                for rows, most in zip(torch.split(order, CPU_TEXTS), torch.split(lengths, CPU_TEXTS), strict=True)
            ]
            hidden = torch.cat(parts)[order.argsort()]
        return F.normalize(self.text_projection(hidden).float(), dim=-1)

    def _read(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) -> (B, width): what the last layer makes of [CLS]."""
        hidden: Tensor = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden[:, 0]


def text_config(config: ModelConfig, vocab_size: int) -> BertConfig:
    """The transformers configuration of the text tower. The feed-forward width is BERT's: four times the model's."""
    shape = text_shape(config)
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=config.max_tokens,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=shape.width**-0.5,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # goes to the base class by **kwargs, unseen by mypy
    )


def save_model(model: DualEncoder, directory: Path, *, stage: str) -> None:
    """Writes `model.safetensors` and `config.json` into a folder that exists. Equal weights are equal bytes."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    config = {
        "schema_version": SCHEMA_VERSION,
        "model": model.config.model_dump(mode="json"),
        "vocab_size": model.vocab_size,
        "stage": stage,
    }
    write_text(directory / "config.json", to_json(config))


def load_model(directory: Path) -> DualEncoder:
    """Reads what `save_model` wrote; the model comes in evaluation mode on the CPU.

    Raises:
        DataError: there is no model in the folder, or its weights do not fit its configuration.
        FormatError: another schema version, or a folder of transformers' AlignModel.
    """
    path = directory / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{directory}: no model here (config.json is missing); run the stage that writes it") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if document.get("model_type") == "align":
        raise FormatError(f"{directory}: in Hugging Face's format; `align import_model --from` makes it one of ours")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise FormatError(
            f"{path}: schema_version {document.get('schema_version')!r}, this code reads {SCHEMA_VERSION}"
        )
    try:
        config = ModelConfig.model_validate(document["model"])
        model = DualEncoder(config, int(document["vocab_size"]))
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (ValidationError, KeyError) as error:
        raise DataError(f"{path}: not a model configuration of this version: {' '.join(str(error).split())}") from None
    except (OSError, RuntimeError) as error:
        raise DataError(f"{directory}/model.safetensors: does not load: {' '.join(str(error).split())[:300]}") from None
    return model.eval()
