"""Towers that were trained elsewhere, as pre-training begins with them: of timm, and text encoders of transformers.

`align.model.library_towers` takes them as they are. A tower that is converted to ours, EfficientNet or BERT, computes
what the given one does, with these exceptions, which further training removes:

* The image tower ends with its last block: timm's 1x1 convolution before the pooling, and its classifier, are dropped.
* Pictures here are scaled to [-1, 1]. A tower trained on pixels of ImageNet's mean and deviation gets the difference
  folded into its first convolution and the mean of its first batch-norm. The frame of zeros around a picture is then
  mid-grey, where it was of the mean colour.
* Batch-norm here has TensorFlow's eps, 1e-3. Where a tower was trained with 1e-5 (timm's names without `tf_`), its
  scales are changed so that evaluation computes the same.
* At stride 2 the padding is below and right, as TensorFlow's at even sizes. At odd sizes TensorFlow pads both sides:
  145 positions after the first convolution of 289 px, where here, as in transformers' ALIGN, there are 144. Towers
  without `tf_` always pad both sides, so they see a picture moved by some pixels.
* The BERT's pooler, its heads, positions beyond `model.max_tokens` and rows of words that its tokenizer does not have
  are dropped; there is no dropout.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from align.config.given import GivenImageTower, GivenTextTower
from align.config.model import ModelConfig, TextTowerShape
from align.config.recipe import Recipe
from align.errors import AlignError, DataError, first_line
from align.formats.given_tokenizer import read_tokenizer, require_digest
from align.formats.model_folder import CONFIG, WEIGHTS
from align.model.batch_norm import EPS
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import places
from align.model.library_towers import TimmTower, TransformersTextTower, pixel_buffers
from align.model.presets import image_shape, text_shape
from align.model.timm_names import HEAD, their_names
from align.model.tokenizer import TextTokenizer

#: Mean and deviation of colours in [0, 1]: red, green, blue.
_PIXELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_EPS_OF_TORCH = 1e-5

#: In a configuration of transformers: what decides no feature, or what a text tower sets itself.
_BESIDES = re.compile("drop|_token_id|vocab_size|init|architectures|dtype|version|use_cache|^tie_|^_|label")

_BERT_FILES = (WEIGHTS, "pytorch_model.bin")


def given_weights(model: DualEncoder, recipe: Recipe, tokenizer: TextTokenizer | None) -> dict[str, Tensor]:
    """The weights that a recipe gives, under the model's names; empty if it gives none.

    Args:
        model: its shapes are compared; its weights may be without memory (torch's meta device).
        recipe: names the files.
        tokenizer: that the model is trained with; None: it is not known yet.

    Raises:
        DataError: a file is missing, damaged or of another shape, or the BERT has another vocabulary.
        CorruptError: a file has another digest.
    """
    found: dict[str, Tensor] = {}
    if (image := recipe.image_weights) is not None:
        found |= _checked(model, "image", image.path, _image(model, image))
    if (text := recipe.text_weights) is not None:
        found |= _checked(model, "text", text.path, _text(model, text, tokenizer))
    return found


def require_given(model: ModelConfig, recipe: Recipe, vocab_size: int, tokenizer: TextTokenizer | None) -> None:
    """Raises as `given_weights`, without memory for the model."""
    if names_of(recipe) is not None:
        with torch.device("meta"):
            towers = DualEncoder(model, vocab_size)
        given_weights(towers, recipe, tokenizer)


def _checked(
    model: DualEncoder, kind: Literal["image", "text"], path: Path, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A tower's weights under the model's names, after a check of their names and shapes."""
    prefix = {"image": "vision_model.", "text": "text_model."}[kind]
    states = model.state_dict().items()
    wanted = {name.removeprefix(prefix): value.shape for name, value in states if name.startswith(prefix)}
    tower = f"model.{kind}_tower {getattr(model.config, f'{kind}_tower')}"
    _require_same(f"pretrain.{kind}_weights: {path}: not the weights of {tower}", weights, wanted)
    return {prefix + name: value for name, value in weights.items()}


def names_of(recipe: Recipe) -> tuple[str, str] | None:
    """Names and digests of the files that a recipe gives, image first; None if it gives none."""
    given = [each for each in (recipe.image_weights, recipe.text_weights) if each is not None]
    return (", ".join(each.path.name for each in given), ", ".join(each.sha256 for each in given)) if given else None


def _require_same(where: str, weights: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Raises DataError unless these are finite weights of exactly these names and shapes."""
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is not known" for name in weights if name not in wanted]
    wrong += [
        f"{name} is {_shape(weights[name].shape)}, expected {_shape(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    wrong = wrong or [f"{name} is not finite" for name, value in weights.items() if not value.isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(f"{where}: {'; '.join(wrong[:3])}{more}")


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"


def _image(model: DualEncoder, given: GivenImageTower) -> dict[str, Tensor]:
    """timm's state dict -> that of the image tower."""
    where = f"pretrain.image_weights: {given.path}"
    if not given.path.is_file():
        raise DataError(f"{where}: no such file")
    require_digest("pretrain.image_weights", given.path, given.sha256)
    tower = model.vision_model
    head = tower.classifier if isinstance(tower, TimmTower) else HEAD
    theirs = {name: value for name, value in _state_dict(where, given.path).items() if not name.startswith(head)}
    if isinstance(tower, TimmTower):
        own = {f"model.{name}": value.float() if value.is_floating_point() else value for name, value in theirs.items()}
        return own | pixel_buffers(*_PIXELS[given.pixels])
    named = their_names(tower.state_dict(), places(image_shape(model.config)))
    our_name = {name: ours for ours, name in named.items()}
    ours = {our_name.get(name, name): value.float() for name, value in theirs.items()}
    if not given.of_tensorflow:
        _change_eps(ours)
    _scale_pixels(ours, *_PIXELS[given.pixels])
    return ours


def _change_eps(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if name.endswith(".running_var")]:
        scale = name.removesuffix("running_var") + "weight"
        if scale in weights:
            weights[scale] = weights[scale] * ((weights[name] + EPS) / (weights[name] + _EPS_OF_TORCH)).sqrt()


def _scale_pixels(weights: dict[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """(x + 1) / 2 less the mean, divided by the deviation, is x * scale + shift, for x in [-1, 1]."""
    kernel, average = (weights.get(f"embeddings.{name}") for name in ("convolution.weight", "batchnorm.running_mean"))
    if kernel is None or average is None or kernel.ndim != 4 or kernel.shape[1] != len(mean):
        return  # `_require_same` says so
    scale_C, shift_C = 0.5 / torch.tensor(std), (0.5 - torch.tensor(mean)) / torch.tensor(std)
    weights["embeddings.batchnorm.running_mean"] = average - (kernel.sum((2, 3)) * shift_C).sum(1)
    weights["embeddings.convolution.weight"] = kernel * scale_C[:, None, None]


def _state_dict(where: str, file: Path) -> dict[str, Tensor]:
    """The tensors in a file of `safetensors` or of `torch.save`, which is read without running any code in it."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other versions, which it then reads or refuses
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # hostile bytes raise what they like
        raise DataError(f"{where}: does not load: {first_line(error)}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{where}: not a state dict: expected names and tensors, as `model.state_dict()` has them")
    return {str(name): value for name, value in found.items()}


def _text(model: DualEncoder, given: GivenTextTower, tokenizer: TextTokenizer | None) -> dict[str, Tensor]:
    """The weights of a text encoder, or of a BERT, -> those of the text tower."""
    where = f"pretrain.text_weights: {given.path}"
    file = next((given.path / name for name in _BERT_FILES if (given.path / name).is_file()), None)
    if file is None or not (given.path / CONFIG).is_file():
        raise DataError(f"{where}: no text encoder here: expected {CONFIG}, and {' or '.join(_BERT_FILES)}")
    require_digest("pretrain.text_weights", file, given.sha256)
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    tower = model.text_model if isinstance(model.text_model, TransformersTextTower) else None
    load: Any = (type(tower.model) if tower else BertModel).from_pretrained
    silent: Any = logging.disable_progress_bar
    silent()
    try:
        kind: Any = type(tower.model.config) if tower else BertConfig
        theirs: Any = kind.from_pretrained(given.path, local_files_only=True)
        _require_values(where, theirs, _computes(tower, theirs) if tower else _bert(text_shape(model.config)))
        with torch.random.fork_rng(devices=[]):
            loaded, problems = load(
                given.path, config=theirs, local_files_only=True, dtype=torch.float32, output_loading_info=True,
                use_safetensors=file.name == WEIGHTS, **({} if tower else {"add_pooling_layer": False}),
            )  # fmt: skip
    except AlignError:
        raise
    except Exception as error:  # noqa: BLE001  # see `_state_dict`
        raise DataError(f"{where}: does not load: {first_line(error)}") from None
    needed = tower.model.state_dict() if tower else loaded.state_dict()  # not a pooler, which we leave out
    if missing := sorted(map(str, needed.keys() & problems["missing_keys"])):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{where}: the weights are not complete: {', '.join(missing[:3])}{more} missing")
    vocabulary = read_tokenizer(given.path).get_vocab(with_added_tokens=True)
    if tokenizer is not None and vocabulary != tokenizer.vocabulary:
        raise DataError(
            f"{where}: its tokenizer has another vocabulary ({len(vocabulary):,} words) than the one to train with "
            f"({tokenizer.vocab_size:,}); set fit_tokenizer.from to this folder, and run `align fit_tokenizer`"
        )
    weights: dict[str, Tensor] = {name: value for name, value in loaded.state_dict().items() if name in needed}
    words = loaded.get_input_embeddings().weight.data_ptr()
    weights = {
        name: one[: model.vocab_size].clone() if one.data_ptr() == words else one for name, one in weights.items()
    }
    if tower:
        return {f"model.{name}": one for name, one in weights.items()}
    positions = "embeddings.position_embeddings.weight"
    return weights | {positions: weights[positions][: model.config.max_tokens].clone()}


def _bert(ours: TextTowerShape) -> dict[str, Any]:
    """What a BERT's configuration has to be for the text tower; another value is another architecture."""
    return {
        "model_type": "bert", "hidden_size": ours.width, "num_hidden_layers": ours.layers,
        "num_attention_heads": ours.heads, "intermediate_size": 4 * ours.width, "hidden_act": "gelu",
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "is_decoder": False,
    }  # fmt: skip


def _computes(tower: TransformersTextTower, theirs: Any) -> dict[str, Any]:
    """What decides the features in the tower's configuration, of all that either one names."""
    ours = tower.model.config
    names = {*ours.to_diff_dict(), *theirs.to_diff_dict()}
    return {name: getattr(ours, name, None) for name in sorted(names) if not _BESIDES.search(name)}


def _require_values(where: str, theirs: Any, wanted: dict[str, Any]) -> None:
    for field, value in wanted.items():
        if getattr(theirs, field, None) != value:
            raise DataError(f"{where}: {field} is {getattr(theirs, field, None)!r}, model.text_tower needs {value!r}")
