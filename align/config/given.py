"""A file or folder that was made elsewhere, with its digest: a stage starts from it.

DVC does not track it. Its digest is a parameter, so another one makes the stage stale, and a changed one is refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from align.config.model import TIMM
from align.config.params import Strict
from align.config.paths import PathField

#: Hex sha256.
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Given(Strict):
    path: PathField
    sha256: Digest


class GivenTokenizer(_Given):
    """A folder in Hugging Face's format: `tokenizer.json`, or `vocab.txt` with `tokenizer_config.json`.

    The digest is that of `tokenizer.json`, or else of `vocab.txt`.
    """


class GivenTextTower(_Given):
    """A folder of a text encoder in Hugging Face's format: `config.json`, the weights, and its tokenizer.

    The digest is that of its one file of weights: `model.safetensors`, or else `pytorch_model.bin`.
    """


class GivenImageTower(_Given):
    """A state dict of a model of timm: a .safetensors file, or one that `torch.save` wrote.

    The file says neither how its batch-norm and padding work nor which pixels it was trained on, so both are given.
    """

    #: As timm names it, with or without its tag: tf_efficientnet_b3, efficientnet_b0.ra_in1k, vit_base_patch16_224.
    architecture: Annotated[str, Field(pattern=r"^\w+(\.\w+)?$")]
    #: timm's mean and std: imagenet (0.485, 0.456, 0.406 and 0.229, 0.224, 0.225) or inception (0.5 and 0.5).
    pixels: Literal["imagenet", "inception"]

    @property
    def towers(self) -> tuple[str, ...]:
        """What `model.image_tower` may be: our EfficientNet of its shape if there is one, and timm's model itself."""
        bare = self.architecture.partition(".")[0]
        ours = re.fullmatch(r"(?:tf_)?efficientnet_(b[0-7]|l2)", bare)
        return (*([ours[1].upper()] if ours else []), TIMM + bare)

    @property
    def of_tensorflow(self) -> bool:
        """Whether it computes as TensorFlow does (and as this project does): eps 1e-3, padding below and right."""
        return self.architecture.startswith("tf_")
