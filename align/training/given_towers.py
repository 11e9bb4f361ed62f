"""Towers that were trained elsewhere, as pre-training begins with them: of timm, and text encoders of transformers.

They are taken as they are, by the towers that these libraries build (`align.model.library_towers`). Heads, poolers and
rows of words that the tokenizer does not have are dropped; there is no dropout.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from align.config.given import Given
from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.errors import AlignError, DataError, first_line
from align.formats.given_tokenizer import read_tokenizer, require_digest
from align.formats.model_folder import CONFIG, WEIGHTS
from align.model.dual_encoder import DualEncoder, other_shapes
from align.model.library_towers import TimmTower, TransformersTextTower
from align.model.tokenizer import TextTokenizer

#: In a configuration of transformers: what decides no feature, or what a text tower sets itself.
_BESIDES = re.compile("drop|_token_id|vocab_size|init|architectures|dtype|version|use_cache|^tie_|^_|label")


def given_weights(model: DualEncoder, recipe: Recipe, tokenizer: TextTokenizer | None) -> dict[str, Tensor]:
    """Reads the weights that a recipe gives, under the model's names; empty if it gives none.

    The model, whose shapes are compared, may be without memory (torch's meta device). The tokenizer is that of the
    training, if it is known.

    Raises:
        DataError: a file is missing, damaged or of another shape, or the text tower has another vocabulary.
        CorruptError: a file has another digest.
    """
    found: dict[str, Tensor] = {}
    if (image := recipe.image_weights) is not None:
        found |= _checked(model, "image", image, _image(model, image))
    if (text := recipe.text_weights) is not None:
        found |= _checked(model, "text", text, _text(model, text, tokenizer))
    return found


def require_given(model: ModelConfig, recipe: Recipe, vocab_size: int, tokenizer: TextTokenizer | None) -> None:
    """Raises as `given_weights`, without memory for the model."""
    if names_of(recipe) is not None:
        with torch.device("meta"):
            towers = DualEncoder(model, vocab_size)
        given_weights(towers, recipe, tokenizer)


def _checked(model: DualEncoder, kind: str, given: Given, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a tower's weights as the model does. Raises DataError unless they are finite and those of the tower."""
    prefix = {"image": "vision_model.model.", "text": "text_model.model."}[kind]
    states = model.state_dict().items()
    wanted = {name.removeprefix(prefix): value.shape for name, value in states if name.startswith(prefix)}
    unusable = [f"{name} is not finite" for name, one in weights.items() if not one.isfinite().all()]
    if wrong := other_shapes(weights, wanted) or "; ".join(unusable[:3]):
        tower = f"model.{kind}_tower {getattr(model.config, f'{kind}_tower')}"
        raise DataError(f"pretrain.{kind}_weights: {given.path}: not the weights of {tower}: {wrong}")
    return {prefix + name: value for name, value in weights.items()}


def names_of(recipe: Recipe) -> tuple[str, str] | None:
    """Names and digests of the files that a recipe gives, image first; None if it gives none."""
    given = [each for each in (recipe.image_weights, recipe.text_weights) if each is not None]
    return (", ".join(each.path.name for each in given), ", ".join(each.sha256 for each in given)) if given else None


def _image(model: DualEncoder, given: Given) -> dict[str, Tensor]:
    """timm's state dict, without its classifier."""
    where, tower = f"pretrain.image_weights: {given.path}", model.vision_model
    assert isinstance(tower, TimmTower)  # `PretrainConfig.against` requires it
    if not given.path.is_file():
        raise DataError(f"{where}: no such file")
    require_digest("pretrain.image_weights", given.path, given.sha256)
    theirs = _state_dict(where, given.path).items()
    kept = ((name, value) for name, value in theirs if not name.startswith(tower.classifier))
    return {name: value.float() if value.is_floating_point() else value for name, value in kept}


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


def _text(model: DualEncoder, given: Given, tokenizer: TextTokenizer | None) -> dict[str, Tensor]:
    """The weights of a text encoder, without what the text tower leaves out."""
    where, tower = f"pretrain.text_weights: {given.path}", model.text_model
    assert isinstance(tower, TransformersTextTower)  # see `_image`
    if not all((given.path / name).is_file() for name in (CONFIG, WEIGHTS)):
        raise DataError(f"{where}: no text encoder here: expected {CONFIG} and {WEIGHTS}; other weights are not read")
    require_digest("pretrain.text_weights", given.path / WEIGHTS, given.sha256)
    from transformers.utils import logging

    kind: Any = type(tower.model)
    silent: Any = logging.disable_progress_bar
    silent()
    try:
        theirs: Any = type(tower.model.config).from_pretrained(given.path, local_files_only=True)
        _require_values(where, theirs, tower.model.config)
        with torch.random.fork_rng(devices=[]):
            loaded, problems = kind.from_pretrained(
                given.path, config=theirs, local_files_only=True, dtype=torch.float32, output_loading_info=True,
                use_safetensors=True,
            )  # fmt: skip
    except AlignError:
        raise
    except Exception as error:  # noqa: BLE001  # see `_state_dict`
        raise DataError(f"{where}: does not load: {first_line(error)}") from None
    needed = tower.model.state_dict()  # not a pooler, which we leave out
    if missing := sorted(map(str, needed.keys() & problems["missing_keys"])):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{where}: the weights are not complete: {', '.join(missing[:3])}{more} missing")
    vocabulary = read_tokenizer(given.path).get_vocab(with_added_tokens=True)
    if tokenizer is not None and vocabulary != tokenizer.vocabulary:
        raise DataError(
            f"{where}: its tokenizer has another vocabulary ({len(vocabulary):,} words) than the one to train with "
            f"({tokenizer.vocab_size:,}); set fit_tokenizer.from to this folder, and run `align fit_tokenizer`"
        )
    words = loaded.get_input_embeddings().weight.data_ptr()
    kept = ((name, one) for name, one in loaded.state_dict().items() if name in needed)
    return {name: one[: model.vocab_size].clone() if one.data_ptr() == words else one for name, one in kept}


def _require_values(where: str, theirs: Any, ours: Any) -> None:
    """Raises DataError if a value that decides the features differs, of all that either configuration names."""
    for field in sorted({*ours.to_diff_dict(), *theirs.to_diff_dict()}):
        found, needed = getattr(theirs, field, None), getattr(ours, field, None)
        if found != needed and not _BESIDES.search(field):
            raise DataError(f"{where}: {field} is {found!r}, model.text_tower needs {needed!r}")
