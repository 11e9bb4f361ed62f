"""Writes our model as a folder that open_clip loads by `local-dir:FOLDER`, and with it CLIP_benchmark.

open_clip builds its towers by name: a model of timm, a BERT of transformers, each with a linear projection. A tower of
timm is written as it is, if open_clip builds it for the model's picture size. Our own towers fit at any width, since:

* An image tower of coefficients that timm does not have is written as the smallest of timm's that is as wide and as
  deep. The channels and blocks that ours lacks are zeros, and change nothing.
* timm's tower ends with a 1x1 convolution, batch-norm and SiLU. The convolution gives each feature twice, as x and -x,
  and the projection takes the difference: SiLU(x) - SiLU(-x) = x.
* open_clip's projection of texts has no bias. What a layer norm of weight g and bias b gives has one known sum, that
  of y / g, so a multiple of this sum is our bias.

What differs: timm pads odd sizes on both sides, so a folder of our EfficientNet is for pictures of the largest multiple
of 32 that is not above the model's size (the paper's 289 become 288), and there the embeddings are equal. open_clip
resizes the whole picture to the folder's size, where we crop the centre of a larger one. It also repairs texts (ftfy)
before they become tokens: curly quotes become straight.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from align.config.model import TIMM, ModelConfig
from align.durable.files import to_json, write_text
from align.errors import DataError, first_line
from align.formats.model_folder import TOKENIZER, TOKENIZER_CONFIG
from align.model.batch_norm import EPS
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import ImageTower, places
from align.model.library_towers import TimmTower
from align.model.presets import IMAGE_TOWERS, image_shape, scaled, text_shape
from align.model.tokenizer import TextTokenizer
from align.release.exchange.timm_names import their_names

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_IMAGE, _TEXT = "visual.trunk.", "text.transformer."
#: timm's channels after the last convolution, before scaling.
_HEAD_CHANNELS = 1280


def open_clip_px(config: ModelConfig) -> int:
    """The picture size of the folder, see the module."""
    return config.image_px if "timm" in config.libraries else config.image_px // 32 * 32


def write_open_clip(model: DualEncoder, tokenizer_dir: Path, directory: Path, out: Path) -> None:
    """Writes weights, configuration and tokenizer into `directory`, which will be at `out`: open_clip needs the path.

    Raises:
        DataError: open_clip cannot build such a tower.
    """
    config, tower, native = model.config, model.vision_model, isinstance(model.vision_projection, nn.Identity)
    pad_id = TextTokenizer.load(tokenizer_dir, config.max_tokens).pad_id  # open_clip masks it
    text: Any = BertConfig(**_bert(config, model.vocab_size), pad_token_id=pad_id)
    if isinstance(tower, TimmTower):
        name, pool, image = str(config.image_tower).removeprefix(TIMM), "", _trunk_weights(model, tower)
        std_C = 0.5 / tower.scale.flatten()
        mean_C = 0.5 - tower.shift.flatten() * std_C
        mean, std = ([round(each, 6) for each in part.tolist()] for part in (mean_C, std_C))
    else:
        wide = _timm_tower(config)
        name, pool, image = f"tf_efficientnet_{str(wide.image_tower).lower()}", "avg", _image(model, wide)
        mean = std = [0.5, 0.5, 0.5]
    text.save_pretrained(directory)
    for file in (TOKENIZER, TOKENIZER_CONFIG):
        if (tokenizer_dir / file).is_file():
            shutil.copyfile(tokenizer_dir / file, directory / file)
    vision_cfg = {
        "timm_model_name": name, "timm_pool": pool, "timm_proj": "linear", "timm_proj_bias": not native,
        "image_size": open_clip_px(config),
    }  # fmt: skip
    text_cfg = {
        "hf_model_name": str(out.resolve()), "hf_tokenizer_name": str(out.resolve()), "hf_proj_type": "linear",
        "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": config.max_tokens,
    }  # fmt: skip
    model_cfg: dict[str, Any] = {"embed_dim": config.embed_width, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    weights = image | _text(model) | {"logit_scale": -model.log_temperature.detach()}
    if model.logit_bias is not None:
        model_cfg["init_logit_bias"] = 0.0
        weights["logit_bias"] = model.logit_bias.detach()
    preprocess = {"mean": mean, "std": std, "interpolation": "bilinear", "resize_mode": "squash"}
    write_text(directory / _CONFIG, to_json({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / _WEIGHTS)


def _trunk(config: ModelConfig) -> Any:
    """A model of timm as open_clip builds it. Raises DataError: not for pictures of this size."""
    import timm

    name = str(config.image_tower)
    trunk: Any = timm.create_model(name.removeprefix(TIMM), pretrained=False)
    trunk.reset_classifier(0)
    try:
        width, wrong = trunk.eval()(torch.zeros(1, 3, config.image_px, config.image_px)).shape[1], ""
    except Exception as error:  # noqa: BLE001  # timm raises what it likes
        width, wrong = trunk.num_features, first_line(error)
    if wrong or width != trunk.num_features:
        wrong = wrong or f"it expects {trunk.num_features} features, not {width}"
        raise DataError(f"--format open_clip: no {name} of {config.image_px} px there: {wrong}; use onnx")
    return trunk


@torch.no_grad()
def _trunk_weights(model: DualEncoder, tower: TimmTower) -> dict[str, Tensor]:
    """What our tower leaves out, since its features do not need it, is zeros."""
    trunk = _trunk(model.config)
    left_out = trunk.load_state_dict(tower.model.state_dict(), strict=False).missing_keys
    found = {_IMAGE + name: one.zero_() if name in left_out else one for name, one in trunk.state_dict().items()}
    return found | _projection(model, torch.eye(tower.width))


def _projection(model: DualEncoder, features: Tensor) -> dict[str, Tensor]:
    """Of what timm's tower gives; `features` makes ours of it."""
    linear = model.vision_projection
    if not isinstance(linear, nn.Linear):
        return {"visual.head.proj.weight": features}
    weight = linear.weight.detach() @ features
    return {"visual.head.proj.weight": weight, "visual.head.proj.bias": linear.bias.detach()}


def _timm_tower(config: ModelConfig) -> ModelConfig:
    """The configuration with timm's smallest tower that holds this one."""
    own = image_shape(config)
    for name, tower in IMAGE_TOWERS.items():
        if tower.width_coefficient >= own.width_coefficient and tower.depth_coefficient >= own.depth_coefficient:
            return config.model_copy(update={"image_tower": name})
    raise DataError(f"--format open_clip: timm has no EfficientNet as wide and as deep as {own}; use onnx")


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
    convolution, scale, features = torch.zeros(head, tower.width), torch.zeros(head), torch.zeros(width, head)
    convolution[: 2 * width, :width], scale[: 2 * width], features[:, : 2 * width] = both, (1 + EPS) ** 0.5, both.T
    last = {"conv_head.weight": convolution[..., None, None], "bn2.weight": scale, "bn2.bias": torch.zeros(head)}
    last |= {"bn2.running_mean": torch.zeros(head), "bn2.running_var": torch.ones(head)}
    last["bn2.num_batches_tracked"] = torch.tensor(0)
    named = {name: state[ours] for ours, name in their_names(state, theirs).items()}
    found = {_IMAGE + name: tensor for name, tensor in (named | last).items()}
    return found | _projection(model, features)


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


def read_open_clip(directory: Path, model: DualEncoder) -> tuple[Any, Any]:
    """The encoders of the folder, for the check: our EfficientNet by ours of its shape, others by their library."""
    weights, config = load_file(directory / _WEIGHTS), model.config
    written = json.loads((directory / _CONFIG).read_text("utf-8"))["preprocess_cfg"]
    mean_C11, std_C11 = (torch.tensor(written[part])[:, None, None] for part in ("mean", "std"))
    trunk = _without(weights, _IMAGE)
    if "timm" in config.libraries:
        tower = _trunk(config)
    else:
        wide = _timm_tower(config)
        tower = ImageTower(wide).eval()
        trunk = {ours: trunk[name] for ours, name in their_names(tower.state_dict(), places(image_shape(wide))).items()}
    tower.load_state_dict(trunk)
    make: Any = BertModel
    bert: Any = make(BertConfig(**_bert(config, model.vocab_size)), add_pooling_layer=False).eval()
    bert.load_state_dict(_without(weights, _TEXT))
    width, project = model.vision_model.width, weights["visual.head.proj.weight"]
    bias = weights.get("visual.head.proj.bias", torch.zeros(len(project)))

    def image(pixels: Tensor) -> Tensor:
        seen = (pixels * 0.5 + 0.5 - mean_C11) / std_C11
        return F.normalize(F.linear(tower(seen)[:, :width], project[:, :width], bias), dim=-1)

    def text(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return F.normalize(F.linear(hidden, weights["text.proj.weight"]), dim=-1)

    return image, text


def _without(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
