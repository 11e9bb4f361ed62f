"""Writes our model as a folder that `transformers.AlignModel.from_pretrained` reads, and reads such a folder.

Upstream has no image projection, so only a model at its image tower's native width can be written (B7 at 640, B3 at
384). Any checkpoint whose towers are an EfficientNet and a BERT can be read, such as kakaobrain/align-base. Names of
weights are the same on both sides, with these exceptions:

* the temperature is a raw parameter there and the exponential of `log_temperature` here;
* the text tower's pooler, which nothing reads, is dropped when reading and written as zeros;
* positions beyond the tokenizer's length, which no text reaches, are dropped when reading.

The processor of a written folder equals our own preprocessing: texts are truncated, unlike upstream's default, and
images are resized, cropped and scaled in the same way. (Our JPEG decoder scales while it decodes, so large JPEGs differ
by some grey levels; files of other formats do not.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AlignConfig,
    AlignProcessor,
    AlignTextConfig,
    AlignVisionConfig,
    EfficientNetImageProcessor,
    PreTrainedTokenizerFast,
)

from align.config.model import ImageTowerShape, ModelConfig, TextTowerShape
from align.errors import DataError, first_line
from align.formats.given_tokenizer import read_tokenizer
from align.formats.json_file import read_object
from align.formats.model_folder import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    library_model,
    require_file,
    require_own_files,
)
from align.model.dual_encoder import DualEncoder, model_of
from align.model.presets import image_shape, named, text_shape
from align.model.tokenizer import TextTokenizer

#: Fields of upstream's configurations beyond the shape; another value is another architecture.
_VISION_FIELDS = (
    "num_channels", "depth_divisor", "kernel_sizes", "in_channels", "out_channels", "depthwise_padding", "strides",
    "num_block_repeats", "expand_ratios", "squeeze_expansion_ratio", "hidden_act", "pooling_type", "batch_norm_eps",
)  # fmt: skip
_TEXT_FIELDS = ("intermediate_size", "hidden_act", "type_vocab_size", "layer_norm_eps")

#: Our preprocessing: the whole image resized to a square (bilinear), its centre, pixel / 127.5 - 1.
_PIXELS: dict[str, Any] = {
    "do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 127.5, "rescale_offset": True,
    "do_normalize": False, "include_top": False,
}  # fmt: skip

#: Both may hold the configuration of the image processor.
_PROCESSOR, _IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
_LONGEST = 512  # the bound of `ModelConfig.max_tokens`


def align_config(config: ModelConfig, vocab_size: int, width: int) -> Any:
    """Upstream's configuration of the same model: an AlignConfig, whose sections mypy cannot tell from dicts.

    Args:
        config: of our model.
        vocab_size: number of rows of the word embedding.
        width: of the pooled features.
    """
    shape, scale = text_shape(config), image_shape(config)
    text = AlignTextConfig(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=config.max_tokens,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    vision = AlignVisionConfig(
        image_size=config.image_px,
        width_coefficient=float(scale.width_coefficient),  # upstream refuses whole numbers
        depth_coefficient=float(scale.depth_coefficient),
        drop_connect_rate=float(config.stochastic_depth),
        hidden_dim=max(width, config.image_px // 32 + 1),  # its pooling window: at least the last map
    )
    return AlignConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=width,
        temperature_init_value=float(config.temperature_init),
        architectures=["AlignModel"],
    )


def write_hugging_face(model: DualEncoder, tokenizer_dir: Path, directory: Path) -> None:
    """Writes weights, configuration, tokenizer and processor into an existing folder.

    Raises:
        DataError: upstream has no such tower, or the model has an image projection, which upstream does not; or there
            is no tokenizer.
    """
    width = model.vision_model.width
    config = align_config(model.config, model.vocab_size, width)
    if not isinstance(model.vision_projection, nn.Identity):
        raise DataError(
            f"embed_width {model.config.embed_width} is not the image tower's own width {width}: "
            f"transformers.AlignModel has no image projection, so it cannot hold this model. Train with "
            f"model.embed_width={width}, or export to open_clip or onnx"
        )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights.pop("logit_bias", None)  # moves no embedding
    weights["temperature"] = weights.pop("log_temperature").exp()
    hidden = config.text_config.hidden_size
    weights |= {
        "text_model.pooler.dense.weight": torch.zeros(hidden, hidden),
        "text_model.pooler.dense.bias": torch.zeros(hidden),
    }
    config.save_pretrained(directory)
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    _processor(model.config, tokenizer_dir).save_pretrained(directory)


def _processor(config: ModelConfig, tokenizer_dir: Path) -> AlignProcessor:
    TextTokenizer.load(tokenizer_dir, config.max_tokens)  # its error says what is wrong with the folder
    stored = json.loads((tokenizer_dir / TOKENIZER).read_text(encoding="utf-8"))
    stored["truncation"] = stored["padding"] = None  # the processor asks for both with each call
    make_tokenizer: Any = PreTrainedTokenizerFast  # transformers leaves both untyped
    make_processor: Any = AlignProcessor
    tokenizer = make_tokenizer(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)),
        model_max_length=config.max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        max_length=config.max_tokens,
        truncation=True,  # the processor's defaults
    )
    square, crop = config.resize_px, config.image_px
    images = EfficientNetImageProcessor(
        size={"height": square, "width": square},
        crop_size={"height": crop, "width": crop},
        do_center_crop=True,
        **_PIXELS,
    )
    return cast(AlignProcessor, make_processor(image_processor=images, tokenizer=tokenizer))


def read_hugging_face(directory: Path, *, batch_norm_group: int) -> tuple[DualEncoder, Tokenizer]:
    """Reads a folder in Hugging Face's format: configuration, weights, tokenizer and image processor.

    Args:
        directory: such as a clone of kakaobrain/align-base. Nothing is downloaded.
        batch_norm_group: samples that share batch statistics in fine-tuning, which the folder does not specify.

    Raises:
        DataError: the folder is incomplete, or holds another architecture or other preprocessing.
    """
    require_own_files(directory)
    if library_model(directory) != "align":
        what = (
            "its config.json has no model_type 'align'" if (directory / CONFIG).is_file() else "it has no config.json"
        )
        raise DataError(f"{directory}: no ALIGN model in Hugging Face's format: {what}")
    tokenizer = read_tokenizer(directory)
    names = (CONFIG, TOKENIZER_CONFIG, _PROCESSOR, _IMAGE_PROCESSOR)
    files = {name: read_object(directory / name) for name in names if (directory / name).is_file()}
    pixels = files.get(_PROCESSOR, {}).get("image_processor") or files.get(_IMAGE_PROCESSOR)
    if pixels is None:
        raise DataError(f"{directory / _IMAGE_PROCESSOR}: no such file; copy it from the model's publisher")
    try:
        theirs: Any = AlignConfig.from_dict(files[CONFIG])
        config = model_config(
            theirs,
            EfficientNetImageProcessor.from_dict(pixels),
            longest=int(files.get(TOKENIZER_CONFIG, {}).get("model_max_length", _LONGEST)),
            batch_norm_group=batch_norm_group,
        )
    except DataError as error:
        raise DataError(f"{directory}: {error}") from None
    except Exception as error:  # noqa: BLE001  # transformers raises what it likes
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{directory}: not an ALIGN model in Hugging Face's format: {why}") from None
    vocab_size = theirs.text_config.vocab_size
    if tokenizer.get_vocab_size() != vocab_size:
        raise DataError(f"{directory}: the tokenizer has {tokenizer.get_vocab_size()} words, the model {vocab_size}")
    file = require_file(directory / WEIGHTS)
    try:
        weights = our_weights(load_file(file), config.max_tokens)
    except KeyError as error:
        raise DataError(f"{file}: does not load: {error.args[0]} is missing") from None
    except Exception as error:  # noqa: BLE001  # hostile bytes raise what they like
        raise DataError(f"{file}: does not load: {first_line(error)}") from None
    model = model_of(config, vocab_size, weights, file)
    if not model.log_temperature.isfinite():
        raise DataError(f"{file}: its temperature divides the cosine and must be a positive number")
    return model, tokenizer


def model_config(
    theirs: Any,
    images: EfficientNetImageProcessor,
    *,
    longest: int,
    batch_norm_group: int,
) -> ModelConfig:
    """Our configuration of upstream's model.

    Args:
        theirs: its AlignConfig.
        images: its image processor.
        longest: number of tokens to which its tokenizer truncates a text.
        batch_norm_group: see `read_hugging_face`.

    Raises:
        DataError: upstream has an architecture or a preprocessing that our model does not support.
    """
    vision, text = theirs.vision_config, theirs.text_config
    image_tower = ImageTowerShape(
        width_coefficient=vision.width_coefficient, depth_coefficient=vision.depth_coefficient
    )
    text_tower = TextTowerShape(width=text.hidden_size, layers=text.num_hidden_layers, heads=text.num_attention_heads)
    square, crop = _side(images.size), _side(images.crop_size) if images.do_center_crop else _side(images.size)
    ours = ModelConfig(
        resize_px=square,
        image_px=crop,
        image_tower=named(image_tower),
        stochastic_depth=vision.drop_connect_rate,
        batch_norm_group=batch_norm_group,
        text_tower=named(text_tower),
        max_tokens=min(longest, text.max_position_embeddings, _LONGEST),
        embed_width=theirs.projection_dim,
        temperature_init=theirs.temperature_init_value,
        logit_bias_init=None,
    )
    same = align_config(ours, text.vocab_size, theirs.projection_dim)
    for part, fields, wanted, given in (
        ("vision_config", _VISION_FIELDS, same.vision_config, vision),
        ("text_config", _TEXT_FIELDS, same.text_config, text),
    ):
        for field in fields:
            if getattr(wanted, field) != getattr(given, field):
                raise DataError(
                    f"{part}.{field} is {getattr(given, field)!r}, this code supports only {getattr(wanted, field)!r}"
                )
    for field, value in _PIXELS.items():
        if getattr(images, field) != value:
            raise DataError(
                f"the image processor's {field} is {getattr(images, field)!r}, this code supports only {value!r}"
            )
    return ours


def _side(size: Any) -> int:
    if size.height is None or size.height != size.width:
        raise DataError(f"the image processor's size {dict(size)} is not a square")
    return int(size.height)


def our_weights(weights: dict[str, Tensor], max_tokens: int) -> dict[str, Tensor]:
    """Upstream's state dict under our names (see the module): no pooler, log temperature, `max_tokens` positions."""
    left_out = (".pooler.dense.weight", ".pooler.dense.bias", ".position_ids", "temperature")
    ours = {name: tensor for name, tensor in weights.items() if not name.endswith(left_out)}
    positions = "text_model.embeddings.position_embeddings.weight"
    ours[positions] = ours[positions][:max_tokens]
    ours["log_temperature"] = weights["temperature"].log()
    return ours
