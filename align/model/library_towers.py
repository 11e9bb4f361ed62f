"""Towers that timm and transformers build: any image model of timm, any text encoder of transformers.

What training relies on is as in our own towers: nothing is drawn from a global generator (no dropout; stochastic depth
by the draws of each sample), and batch-norm is that of `align.model.batch_norm`. Classifiers and poolers are left out;
another parameter that the features do not need gets no gradient, and stays as it is. Weights start as the library
initialises them.

A tower of timm sees pictures of the mean and deviation that timm names for it; its state dict has both. A table of
positions keeps timm's size and is interpolated to the picture, so that weights fit any size.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.config.model import TIMM, Checkpointing, ModelConfig, TransformersTower
from align.errors import AlignError, ConfigError, first_line
from align.model.batch_norm import batch_norm

#: What timm's models call the choice of any picture size, the first that one takes.
_ANY_SIZE: tuple[dict[str, bool], ...]
_ANY_SIZE = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}, {})


def layers(tower: nn.Module) -> list[nn.Module]:
    """The layers of any tower in order: what its outermost lists hold, without those that have no parameters."""
    found: list[nn.Module] = []
    for child in tower.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += (layer for layer in child if any(True for _ in layer.parameters()))
        else:
            found += layers(child)
    return found


class _LibraryTower(nn.Module):
    """A model of a library.

    Attributes:
        model: as the library names its parts.
        width: of its features.
    """

    model: Any

    def __init__(self, where: str, make: Callable[[], nn.Module], features: Callable[[Any], Tensor]) -> None:
        """Makes the model, and sees its width.

        Raises:
            ConfigError: it cannot be made, or cannot compute its features.
        """
        super().__init__()
        try:
            self.model = make()
            with torch.no_grad():
                found = features(self.model.eval())
        except AlignError:
            raise
        except Exception as error:  # noqa: BLE001  # libraries raise what they like
            raise ConfigError(f"{where}: {first_line(error)}") from None
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.width = int(found.shape[-1])
        self._recomputed: Checkpointing = "none"

    @property
    def gradient_checkpointing(self) -> Checkpointing:
        """With `blocks` the backward pass of training computes layers again; `cheap` means nothing here."""
        return self._recomputed

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, what: Checkpointing) -> None:
        self._recomputed = what
        for layer in layers(self.model) if what == "blocks" else ():
            if not isinstance(layer.forward, _Again):
                layer.forward = _Again(self, layer)


class _Again:
    """A layer's forward function, which the backward pass calls again.

    Then it has the stochastic depth of its own batch, although another batch may have set its own since.
    """

    def __init__(self, tower: _LibraryTower, layer: nn.Module) -> None:
        self._tower, self._forward = tower, layer.forward
        self._drops = [module for module in layer.modules() if isinstance(module, StochasticDepth)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tower, keeps = self._tower, [drop.keep for drop in self._drops]
        if tower.gradient_checkpointing != "blocks" or not (tower.training and torch.is_grad_enabled()):
            return self._forward(*args, **kwargs)

        def run(*args: Any) -> Any:
            for drop, keep in zip(self._drops, keeps, strict=True):
                drop.keep = keep
            return self._forward(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


class StochasticDepth(nn.Module):
    """Drops a residual branch per sample and scales the kept ones by 1 / (1 - rate). No parameters.

    The tower sets `keep` before each forward pass in training: (B,), 0 or 1 / (1 - rate) for each sample, or None. So
    the caller controls the randomness.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.keep is None:
            return x
        return x * self.keep.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


class TimmTower(_LibraryTower):
    """An image model of timm: pixels -> what its classifier would see.

    Attributes:
        num_blocks: stochastic-depth draws per sample.
        classifier: timm's names of layers that this tower lacks begin with these.
    """

    _rates: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, config: ModelConfig) -> None:
        where, name = f"model.image_tower {config.image_tower}", str(config.image_tower).removeprefix(TIMM)
        try:
            import timm as library
        except ModuleNotFoundError as error:
            raise ConfigError(f"{where} needs {error.name}: pip install 'align-mlops[timm]'") from None
        timm: Any = library
        bare = name.partition(".")[0]
        if not timm.is_model(bare):
            near = ", ".join(difflib.get_close_matches(bare, timm.list_models(), 3)) or "none"
            raise ConfigError(f"{where}: timm {timm.__version__} has no such model; names like it: {near}")
        rate = {"drop_path_rate": config.stochastic_depth} if config.stochastic_depth else {}

        def make() -> Any:
            for any_size in _ANY_SIZE:
                try:
                    return timm.create_model(name, pretrained=False, num_classes=0, **rate, **any_size)
                except TypeError:
                    if not any_size:
                        raise
            raise AssertionError

        def features(model: Any) -> Tensor:
            found: Tensor = model(torch.zeros(2, 3, config.image_px, config.image_px))
            if found.ndim == 2:
                return found
            raise ConfigError(f"{where}: gives no vector per picture, but {found.ndim - 1} dimensions")

        super().__init__(f"{where} at image_px {config.image_px}", make, features)
        known = self.model.pretrained_cfg
        classifier = known["classifier"]
        self.classifier = tuple(f"{each}." for each in ([classifier] if isinstance(classifier, str) else classifier))
        self._drops: list[StochasticDepth] = []
        self._replace(self.model, config, timm.layers.DropPath, where)
        self.num_blocks = len(self._drops)
        self.register_buffer("_rates", torch.tensor([drop.rate for drop in self._drops]), persistent=False)
        mean_C11, std_C11 = (torch.tensor(known[part])[:, None, None] for part in ("mean", "std"))
        # pixels are in [-1, 1] here; the tower sees (x - mean) / std of pixels in [0, 1]
        self.register_buffer("scale", 0.5 / std_C11)
        self.register_buffer("shift", (0.5 - mean_C11) / std_C11)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types no such overload

    def _replace(self, module: nn.Module, config: ModelConfig, drop_path: Any, where: str) -> None:
        """Puts our batch-norm and stochastic depth in the places of the library's."""
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = batch_norm(config, child.num_features)
                norm.eps = child.eps
                norm.load_state_dict(child.state_dict())
                if (act := getattr(child, "act", None)) is not None:
                    norm.add_module("act", act)
                    norm.register_forward_hook(_activated)
                setattr(module, name, norm)
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                raise ConfigError(f"{where}: has batch-norm of another kind than of pictures ({name})")
            elif isinstance(child, drop_path):
                self._drops.append(StochasticDepth(float(child.drop_prob)))
                setattr(module, name, self._drops[-1])
            else:
                self._replace(child, config, drop_path, where)

    def forward(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """As `align.model.image_tower.ImageTower`."""
        if draws is not None and self.training:
            keep_BK = (draws >= self._rates).to(draws.dtype) / (1.0 - self._rates)
        for number, drop in enumerate(self._drops):
            drop.keep = keep_BK[:, number] if draws is not None and self.training else None
        features: Tensor = self.model(pixels * self.scale + self.shift)
        return features


def require_size(config: ModelConfig) -> None:
    """Raises ConfigError: its image tower takes no pictures of its `image_px`."""
    if "timm" in config.libraries:
        with torch.device("meta"):
            TimmTower(config)


def _activated(norm: nn.Module, _: Any, out: Tensor) -> Tensor:
    return norm.act(out)  # type: ignore[no-any-return, operator]  # of timm's BatchNormAct2d


class TransformersTextTower(_LibraryTower):
    """A text encoder of transformers: token ids -> hidden states of its last layer."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        import transformers

        assert isinstance(config.text_tower, TransformersTower)
        where, values, pooling = "model.text_tower", config.text_tower.config, config.text_tower.pooling
        if values["model_type"] not in transformers.CONFIG_MAPPING:
            version, wanted = transformers.__version__, values["model_type"]
            raise ConfigError(f"{where}: transformers {version} has no model_type {wanted}")
        # [PAD] is 0 in a vocabulary that was learned here; the features need no other special token
        special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
        try:
            made: Any = transformers.AutoConfig.for_model(**(special | values | {"vocab_size": vocab_size}))
        except Exception as error:  # noqa: BLE001  # see `_LibraryTower`
            raise ConfigError(f"{where}: {first_line(error)}") from None
        for key, value in made.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(made, key, 0.0)
        made.use_cache = False
        name = type(made).__name__.removesuffix("Config")
        kind: Any = getattr(transformers, f"{name}EncoderModel", None) or getattr(transformers, f"{name}Model", None)
        named = values["model_type"]
        if kind is None:
            raise ConfigError(f"{where}: {named} is no encoder")
        has_pooler = "add_pooling_layer" in inspect.signature(kind).parameters
        without: dict[str, bool] = {"add_pooling_layer": False} if has_pooler else {}

        def hidden(model: Any) -> Tensor:
            most = getattr(made, "max_position_embeddings", config.max_tokens)
            for part, table in model.named_modules():  # RoBERTa and its kin count from the row after that of padding
                if part.endswith("position_embeddings") and (pad := getattr(table, "padding_idx", None)) is not None:
                    most -= pad + 1
            if most < config.max_tokens:
                raise ConfigError(f"{where}: {named} has {most} positions, model.max_tokens is {config.max_tokens}")
            found: Tensor = model(input_ids=torch.zeros(2, 4, dtype=torch.int64)).last_hidden_state
            return found

        super().__init__(f"{where} {named}", lambda: kind(made, **without), hidden)
        self._pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """As `align.model.text_tower.TextTower`."""
        mask = None if attention_mask is None else attention_mask.long()
        hidden_BTF: Tensor = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return hidden_BTF

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, F): the first token's output, the last one's, or the mean of all but padding."""
        hidden_BTF: Tensor = self(input_ids, attention_mask)
        if self._pooling == "first":
            return hidden_BTF[:, 0]
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if self._pooling == "mean":
            share_BT = mask_BT / mask_BT.sum(1, keepdim=True)
            return (hidden_BTF * share_BT[..., None].to(hidden_BTF.dtype)).sum(1)
        last_B = (mask_BT * torch.arange(mask_BT.shape[1], device=mask_BT.device)).argmax(1)
        return hidden_BTF.gather(1, last_B[:, None, None].expand(-1, 1, hidden_BTF.shape[2]))[:, 0]
