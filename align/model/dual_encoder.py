"""The dual encoder (paper section 4.1): EfficientNet and BERT towers, cosine on top, one learned temperature.

Names in the state dict are those of `transformers.AlignModel`. Differences from it, besides those of the towers:

* both towers have gradient checkpointing (upstream: only the text tower);
* the image tower has a projection if its width is not the joint width (the paper's ablations at width 640);
* the temperature is exp(log_temperature), so it is always positive.

Shapes, as suffixes: B samples, D joint width, F width of a tower, T tokens. Images are (B, 3, H, W).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from align.config.model import Checkpointing, Locked, ModelConfig
from align.errors import DataError, first_line
from align.formats.model_folder import (
    WEIGHTS,
    Imported,
    ModelFolderConfig,
    read_config,
    read_weights,
    write_model_folder,
)
from align.model.image_tower import ImageTower
from align.model.library_towers import TimmTower, TransformersTextTower
from align.model.text_tower import TextTower

#: Pixels to pooled features, of any maker.
AnyImageTower = ImageTower | TimmTower

#: Texts of similar length that a CPU encodes together: with fewer, small products cost more than padding.
CPU_TEXTS_AT_ONCE = 16


class DualEncoder(nn.Module):
    """Maps images and texts to unit vectors of one space.

    Attributes:
        config: the model section it was built from.
        vocab_size: rows of the word embedding.
        locked: see `lock`.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        *,
        text_init_std: float | None = None,
        position_init_scale: float = 1.0,
    ) -> None:
        """Initial weights come from torch's global generator.

        Args:
            config: the model section.
            vocab_size: rows of the word embedding.
            text_init_std, position_init_scale: see `TextTower`. Other towers start as their library has it.
        """
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.locked: Locked = "none"
        self.vision_model: AnyImageTower = TimmTower(config) if "timm" in config.libraries else ImageTower(config)
        self.text_model: TextTower | TransformersTextTower = (
            TransformersTextTower(config, vocab_size)
            if "transformers" in config.libraries
            else TextTower(config, vocab_size, init_std=text_init_std, position_init_scale=position_init_scale)
        )
        self.text_projection = nn.Linear(self.text_model.width, config.embed_width)
        nn.init.xavier_uniform_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)
        native = self.vision_model.width == config.embed_width
        self.vision_projection: nn.Module = (
            nn.Identity() if native else nn.Linear(self.vision_model.width, config.embed_width)
        )
        start = torch.tensor(float(config.temperature_init), device="cpu").log()  # of a meta tensor it imports dynamo
        self.log_temperature = nn.Parameter(start.to(self.text_projection.weight.device))
        self.logit_bias: nn.Parameter | None = None  #: for the sigmoid loss
        if config.logit_bias_init is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init)))

    @property
    def gradient_checkpointing(self) -> Checkpointing:
        """What the backward pass of training computes again instead of keeping it; `none` in a new model.

        `cheap`: batch-norm, SiLU and squeeze-excite of the image tower. `blocks`: whole MBConv blocks and BERT layers;
        only their input is kept. Loss and gradients stay the same.
        """
        return self.vision_model.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, what: Checkpointing) -> None:
        self.vision_model.gradient_checkpointing = self.text_model.gradient_checkpointing = what

    def lock(self, which: Locked) -> None:
        """Leaves a tower as it is, as LiT does (Zhai et al., CVPR 2022); the projection on top of it is trained.

        The tower stays in evaluation mode: its batch-norm uses running statistics, and no block is dropped. It gets no
        gradient, and keeps nothing for a backward pass.
        """
        self.locked = which
        for name, tower in self._towers():
            tower.requires_grad_(name != which)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of everything except a locked tower."""
        super().train(mode)
        for name, tower in self._towers():
            if name == self.locked:
                tower.eval()
        return self

    def _towers(self) -> tuple[tuple[Locked, nn.Module], ...]:
        return ("image", self.vision_model), ("text", self.text_model)

    def _learning(self, tower: Locked) -> AbstractContextManager[None]:
        return torch.no_grad() if tower == self.locked else nullcontext()

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
        with self._learning("image"):
            features_BF = self.vision_model(pixels, draws)
        return F.normalize(self.vision_projection(features_BF).float(), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids to embeddings. On a CPU texts are sorted by length, so that little padding is computed.

        Args:
            input_ids: (B, T) int64, T at most `config.max_tokens`.
            attention_mask: (B, T), 1 for tokens and 0 for padding.

        Returns:
            (B, embed_width) float32, L2-normalised.
        """
        if torch.compiler.is_exporting() or input_ids.device.type != "cpu":
            features_BF = self.text_features(input_ids, attention_mask)
        else:
            ends_BT = (attention_mask != 0).long() * torch.arange(1, input_ids.shape[1] + 1)
            lengths_B, order_B = ends_BT.amax(dim=1).clamp(min=1).sort(stable=True)
            alike = (torch.split(some_B, CPU_TEXTS_AT_ONCE) for some_B in (order_B, lengths_B))
            parts = [
                self.text_features(input_ids[rows, : int(most[-1])], attention_mask[rows, : int(most[-1])])
                for rows, most in zip(*alike, strict=True)
            ]
            features_BF = torch.cat(parts)[order_B.argsort()]
        return F.normalize(self.text_projection(features_BF).float(), dim=-1)

    def text_features(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """(B, T) -> (B, F): what the text tower says of each text, before the projection; mask None: no padding."""
        with self._learning("text"):
            return self.text_model.pooled(ids_BT, mask_BT)


def save_model(
    model: DualEncoder,
    directory: Path,
    *,
    stage: str,
    imported: Imported | None = None,
    trained_on: tuple[str, ...] = (),
    not_gated: tuple[str, ...] = (),
    chosen: dict[str, str | int | float] | None = None,
) -> None:
    """Writes a model folder (see `align.formats.model_folder`). Equal weights are equal bytes.

    Args:
        model: on any device.
        directory: a folder that exists.
        stage: the stage that made the model; config.json names it.
        imported: see `ModelFolderConfig`.
        trained_on, not_gated: see `ModelFolderConfig`.
        chosen: see `ModelFolderConfig`.
    """
    config = ModelFolderConfig(
        model=model.config, vocab_size=model.vocab_size, stage=stage, imported=imported, trained_on=trained_on,
        not_gated=not_gated, chosen=chosen,
    )  # fmt: skip
    write_model_folder(config, model.state_dict(), directory)


def load_model(directory: Path, trained: ModelConfig | None = None) -> DualEncoder:
    """Reads a model folder; returns the model in evaluation mode on the CPU.

    Args:
        directory: the folder.
        trained: the folder's configuration as a recipe changes it: another picture size or stochastic depth, which no
            weight depends on; None: as it is.

    Raises:
        DataError: there is no model in the folder, or its weights do not fit its configuration.
        FormatError: another schema version, or a folder of transformers' AlignModel.
    """
    config = read_config(directory)
    return model_of(trained or config.model, config.vocab_size, read_weights(directory), directory / WEIGHTS)


def model_of(config: ModelConfig, vocab_size: int, weights: Mapping[str, Tensor], file: Path) -> DualEncoder:
    """The model with these weights, in evaluation mode on the CPU.

    A configuration of others may describe a model of any size, so its layers are counted, and its shapes are compared
    with those of the weights, before it takes memory or time.

    Raises:
        DataError: the weights, of `file`, do not fit the configuration.
    """
    try:
        wrong = f"it has {len(weights)} tensors, its configuration more layers"
        if layers_in(config.model_dump()) <= len(weights):
            with torch.device("meta"), _Undrawn():
                wanted = {name: one.shape for name, one in DualEncoder(config, vocab_size).state_dict().items()}
            wrong = other_shapes(weights, wanted)
    except Exception as error:  # noqa: BLE001  # torch and the towers' libraries raise what they like
        wrong = first_line(error)
    if wrong:
        raise DataError(f"{file}: does not load: {wrong}")
    with _Undrawn():
        model = DualEncoder(config, vocab_size)
    model.load_state_dict(weights)
    return model.eval()


#: Of `Tensor` and of `nn.init`.
_FILLS = ("uniform_", "normal_", "fill_", "zero_", "constant_", "kaiming_uniform_")


class _Undrawn(TorchFunctionMode):
    """Leaves parameters of new layers as they are: drawing those of B7 with Base takes most of the time to load it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`, unless it fills a parameter."""
        filled = (args or tuple((kwargs or {}).values()) or (None,))[0]
        fills = isinstance(filled, nn.Parameter) and getattr(func, "__name__", "") in _FILLS
        return filled if fills else func(*args, **(kwargs or {}))


def layers_in(config: Mapping[str, Any]) -> float:
    """The largest number of layers that a configuration names, in any of its parts, or the largest factor of depth."""
    parts = [layers_in(value) for value in config.values() if isinstance(value, dict)]
    named = [value for key, value in config.items() if re.search("layer|depth", key) and isinstance(value, int | float)]
    return max([*parts, *named], default=0)


def other_shapes(weights: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> str:
    """In what the names and shapes of weights differ from the wanted ones, at most three; empty if they do not."""
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is not known" for name in weights if name not in wanted]
    wrong += [
        f"{name} is {'x'.join(map(str, weights[name].shape)) or 1}, expected {'x'.join(map(str, shape)) or 1}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    return "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
