"""CLIP_benchmark over our models: `python -m align.adapters.clip_benchmark MODEL --dataset ...`.

It is CLIP_benchmark's own command `clip_benchmark eval` with one more type of model, so its options, sets and results
are its own. Its defaults differ in these points; an option that you give wins:

* `--no_amp`: without it, CLIP_benchmark rounds similarities to bfloat16, and figures differ from `align evaluate`;
* the model's name in its results ends in the model's digest: CLIP_benchmark keeps the features of its linear probe by
  name, and would take those of the model that lay in the folder before;
* `--num_workers 0`: with more, CLIP_benchmark ends where a set has fewer tars than workers;
* pictures of webdatasets (`--dataset wds/...`) reach our decoder as the files' bytes (`align.adapters.models`).

Written for clip-benchmark 1.6.2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align.adapters.models import NamedModel, crop, open_model
from align.display.console import say
from align.errors import AlignError, ConfigError
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.model.tokenizer import pad

INSTALL = 'pip install clip-benchmark==1.6.2 "numpy<2.4"'
_TYPE = "align"
_WHICH_MODEL = ("--model", "--model_type", "--pretrained", "--pretrained_model")
_USAGE = (
    "usage: python -m align.adapters.clip_benchmark MODEL [options of `clip_benchmark eval`]\n"
    "MODEL is a model folder, or a version such as models:/align@champion"
)


class Towers(nn.Module):
    """Both towers, as CLIP_benchmark calls them. Computes in float32, whatever the caller's autocast."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model.eval()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32, made by `transform` -> (B, width), L2-normalised."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.model.encode_image(pixels.float())

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, 2, T) int64, made by `tokenizer` -> (B, width), L2-normalised."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.model.encode_text(tokens[:, 0], tokens[:, 1])


Loaded = tuple[Towers, Callable[[Any], Tensor], Callable[[Sequence[str]], Tensor]]


def load(named: NamedModel, device: str | torch.device = "cpu") -> Loaded:
    """(model, transform, tokenizer), as CLIP_benchmark's `load_clip` returns them.

    `transform` maps a picture to (3, image_px, image_px) float32. `tokenizer` maps texts to (B, 2, T) int64: ids, and
    the mask of what is no padding, in one tensor, since CLIP_benchmark moves one object to the device.
    """
    config, words = named.model.config, named.tokenizer

    def transform(picture: Any) -> Tensor:
        return to_pixels(crop(picture, config)[None])[0]

    def tokenizer(texts: Sequence[str]) -> Tensor:
        return torch.stack(pad(words.ids(list(texts)), words.pad_id), dim=1)

    return Towers(named.model).to(device), transform, tokenizer


class _AsStored:
    """Instead of webdataset's decoder of pictures: leaves the bytes as they are, for our own."""

    def __init__(self, kind: str, extensions: Sequence[str]) -> None:
        self._extensions = frozenset(extensions)

    def __call__(self, key: str, data: bytes) -> bytes | None:
        return data if key.rpartition(".")[2].lower() in self._extensions else None


@contextmanager
def _registered(named: NamedModel) -> Iterator[None]:
    """CLIP_benchmark knows the model type `align` and leaves pictures undecoded."""
    try:
        from clip_benchmark import models
        from clip_benchmark.metrics import zeroshot_classification
        from webdataset import autodecode
    except ImportError as error:
        raise ConfigError(f"CLIP_benchmark cannot be imported ({error}); install it here: {INSTALL}") from None

    try:
        zeroshot_classification.accuracy(torch.eye(2), torch.arange(2))
    except TypeError:  # or else it comes after all the work
        raise ConfigError(f"this CLIP_benchmark does not work with NumPy {np.__version__}; {INSTALL}") from None

    def load_clip(*, device: str | torch.device, **_: Any) -> Loaded:
        return load(named, device)

    decoder = autodecode.ImageHandler
    models.TYPE2FUNC[_TYPE] = load_clip
    models.MODEL_TYPES.append(_TYPE)  # the list that its command line allows
    autodecode.ImageHandler = _AsStored
    try:
        yield
    finally:
        autodecode.ImageHandler = decoder
        models.MODEL_TYPES.remove(_TYPE)
        del models.TYPE2FUNC[_TYPE]


def run(source: str, options: Sequence[str]) -> None:
    """Runs `clip_benchmark eval` over a model.

    Args:
        source: as for `open_model`.
        options: those of `clip_benchmark eval`, without those that choose the model.

    Raises:
        ConfigError: CLIP_benchmark is not installed here, or an option names a model.
        DataError: there is no such model, or a picture does not decode.
        SystemExit: CLIP_benchmark does not know an option.
    """
    for option in options:
        if option.partition("=")[0] in _WHICH_MODEL:
            raise ConfigError(f"{option}: the model is the first argument; leave this option out")
    named = open_model(source)
    with _registered(named):
        from clip_benchmark import cli

        name = f"{named.name}-{named.digest[:12]}"
        before = sys.argv
        model = ("--model_type", _TYPE, "--model", _TYPE, "--pretrained", name)
        sys.argv = ["clip_benchmark", "eval", *model, "--no_amp", "--num_workers", "0", *options]
        try:
            cli.main()
        finally:
            sys.argv = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 1 after an AlignError, or 2 without a model; each is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0].startswith("-"):
        say(_USAGE)
        return 0 if given and given[0] in ("-h", "--help") else 2
    try:
        run(given[0], given[1:])
    except AlignError as error:
        say(f"align: error: {str(error).strip().splitlines()[-1]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
