"""Writes our model as a folder that open_clip loads by `local-dir:FOLDER`, and with it CLIP_benchmark.

open_clip builds its towers by name: an EfficientNet of timm, a BERT of transformers, each with a linear projection.
Every model of ours fits, of any width, since:

* An image tower of coefficients that timm does not have is written as the smallest of timm's that is as wide and as
  deep. The channels and blocks that ours lacks are zeros, and change nothing.
* timm's tower ends with a 1x1 convolution, batch-norm and SiLU. The convolution gives each feature twice, as x and -x,
  and the projection takes the difference: SiLU(x) - SiLU(-x) = x.
* open_clip's projection of texts has no bias. What a layer norm of weight g and bias b gives has one known sum, that
  of y / g, so a multiple of this sum is our bias.

What differs: timm pads odd sizes on both sides, so the folder is for pictures of the largest multiple of 32 that is not
above the model's size (the paper's 289 become 288), and there the embeddings are equal. open_clip resizes the whole
picture to this size, where we crop the centre of a larger one. It also repairs texts (ftfy) before they become tokens:
curly quotes become straight.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from align.config.model import ModelConfig
from align.durable.files import to_json, write_text
from align.errors import DataError
from align.formats.model_folder import TOKENIZER, TOKENIZER_CONFIG
from align.model.batch_norm import EPS
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import ImageTower, places
from align.model.presets import IMAGE_TOWERS, image_shape, scaled, text_shape
from align.model.timm_names import HEAD, our_names, their_names
from align.model.tokenizer import TextTokenizer

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_IMAGE, _TEXT = "visual.trunk.", "text.transformer."
#: timm's channels after the last convolution, before scaling.
_HEAD_CHANNELS = 1280


def open_clip_px(config: ModelConfig) -> int:
    """The picture size of the folder, see the module."""
    return config.image_px // 32 * 32


def write_open_clip(model: DualEncoder, tokenizer_dir: Path, directory: Path, out: Path) -> None:
    """Writes weights, configuration and tokenizer into `directory`, which will be at `out`: open_clip needs the path.

    Raises:
        DataError: timm has no tower that is as wide and as deep.
    """
    config, native = model.config, isinstance(model.vision_projection, nn.Identity)
    wide = _timm_tower(config)
    pad_id = TextTokenizer.load(tokenizer_dir, config.max_tokens).pad_id  # open_clip masks it
    text: Any = BertConfig(**_bert(config, model.vocab_size), pad_token_id=pad_id)
    text.save_pretrained(directory)
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, directory / name)
    vision_cfg = {
        "timm_model_name": f"tf_efficientnet_{str(wide.image_tower).lower()}", "timm_pool": "avg",
        "timm_proj": "linear", "timm_proj_bias": not native, "image_size": open_clip_px(config),
    }  # fmt: skip
    text_cfg = {
        "hf_model_name": str(out.resolve()), "hf_tokenizer_name": str(out.resolve()), "hf_proj_type": "linear",
        "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": config.max_tokens,
    }  # fmt: skip
    model_cfg: dict[str, Any] = {"embed_dim": config.embed_width, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    weights = _image(model, wide) | _text(model) | {"logit_scale": -model.log_temperature.detach()}
    if model.logit_bias is not None:
        model_cfg["init_logit_bias"] = 0.0
        weights["logit_bias"] = model.logit_bias.detach()
    half = [0.5, 0.5, 0.5]
    preprocess = {"mean": half, "std": half, "interpolation": "bilinear", "resize_mode": "squash"}
    write_text(directory / _CONFIG, to_json({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / _WEIGHTS)


def _timm_tower(config: ModelConfig) -> ModelConfig:
    """The configuration with timm's smallest tower that holds this one."""
    own = image_shape(config)
    for name, tower in IMAGE_TOWERS.items():
        if tower.width_coefficient >= own.width_coefficient and tower.depth_coefficient >= own.depth_coefficient:
            return config.model_copy(update={"image_tower": name})
    raise DataError(f"--format open_clip: timm has no EfficientNet as wide and as deep as {own}; use onnx or torch")


def _bert(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    shape = text_shape(config)
    return {
        "vocab_size": vocab_size, "hidden_size": shape.width, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "intermediate_size": 4 * shape.width,
        "max_position_embeddings": config.max_tokens, "architectures": ["BertModel"],
    }  # fmt: skip


def _image(model: DualEncoder, wide: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        tower = ImageTower(wide)
    shapes = tower.state_dict()
    state = {name: torch.full(one.shape, name.endswith("running_var"), dtype=one.dtype) for name, one in shapes.items()}
    theirs, own = places(image_shape(wide)), places(image_shape(model.config))
    for name, tensor in model.vision_model.state_dict().items():
        if name.startswith("encoder.blocks."):
            first, second, number, rest = name.split(".", 3)
            name = f"{first}.{second}.{theirs.index(own[int(number)])}.{rest}"
        state[name][tuple(map(slice, tensor.shape))] = tensor
    width, head = model.vision_model.width, scaled(_HEAD_CHANNELS, image_shape(wide))
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    convolution, scale, project = torch.zeros(head, tower.width), torch.zeros(head), torch.zeros(wide.embed_width, head)
    convolution[: 2 * width, :width], scale[: 2 * width] = both, (1 + EPS) ** 0.5
    linear = model.vision_projection
    ours = linear.weight.detach() if isinstance(linear, nn.Linear) else torch.eye(width)
    project[:, : 2 * width] = ours @ both.T
    last = {"conv_head.weight": convolution[..., None, None], "bn2.weight": scale, "bn2.bias": torch.zeros(head)}
    last |= {"bn2.running_mean": torch.zeros(head), "bn2.running_var": torch.ones(head)}
    last["bn2.num_batches_tracked"] = torch.tensor(0)
    found = {_IMAGE + name: tensor for name, tensor in (their_names(state, theirs) | last).items()}
    found["visual.head.proj.weight"] = project
    return found | ({"visual.head.proj.bias": linear.bias.detach()} if isinstance(linear, nn.Linear) else {})


def _text(model: DualEncoder) -> dict[str, Tensor]:
    state = {name: tensor.detach().clone() for name, tensor in model.text_model.state_dict().items()}
    norm = f"encoder.layer.{text_shape(model.config).layers - 1}.output.LayerNorm."
    scale, shift = state[norm + "weight"].double(), state[norm + "bias"].double()
    weight, bias = model.text_projection.weight.detach().double(), model.text_projection.bias.detach().double()
    total = (shift / scale).sum()
    more = scale if total >= 0 else -scale  # keeps the sum away from 0; the projection takes it out again
    total = total + (more / scale).sum()
    state[norm + "bias"] = (shift + more).float()
    project = weight + torch.outer(bias - weight @ more, 1 / scale) / total
    return {_TEXT + name: tensor for name, tensor in state.items()} | {"text.proj.weight": project.float()}


def read_open_clip(directory: Path, config: ModelConfig, vocab_size: int) -> tuple[Any, Any]:
    """The encoders of the folder, for the check: timm's tower by ours of the same shape, the BERT by transformers."""
    weights, wide = load_file(directory / _WEIGHTS), _timm_tower(config)
    tower = ImageTower(wide)
    trunk = {name: one for name, one in _without(weights, _IMAGE).items() if not name.startswith(HEAD)}
    tower.load_state_dict(our_names(trunk))
    make: Any = BertModel
    bert: Any = make(BertConfig(**_bert(config, vocab_size)), add_pooling_layer=False).eval()
    bert.load_state_dict(_without(weights, _TEXT))
    tower.eval()
    width, project = scaled(320, image_shape(config)), weights["visual.head.proj.weight"]
    bias = weights.get("visual.head.proj.bias", torch.zeros(len(project)))

    def image(pixels: Tensor) -> Tensor:
        return F.normalize(F.linear(tower(pixels)[:, :width], project[:, :width], bias), dim=-1)

    def text(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return F.normalize(F.linear(hidden, weights["text.proj.weight"]), dim=-1)

    return image, text


def _without(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
