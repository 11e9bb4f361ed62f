"""mteb, open_clip and CLIP_benchmark, in an environment of their own."""

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers import FOLDER, build_peers
from tests.support import missing

_ENVIRONMENT = "peers_evaluation"


def tools() -> Path:
    """The interpreter that has them. Skips the test where they are not installed; with CI=true it installs them."""
    if not (FOLDER / _ENVIRONMENT / "bin/python").exists() and os.environ.get("CI") != "true":
        missing(f"needs mteb and CLIP_benchmark in .align/{_ENVIRONMENT}: with CI=true these tests install them")
    return build_peers(_ENVIRONMENT)


def whole(picture: bytes, px: int) -> NDArray[np.uint8]:
    """A picture as open_clip prepares it: all of it, in a square, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize((px, px), Image.Resampling.BILINEAR))
