"""Tools of others (mteb, open_clip, CLIP_benchmark; mlcroissant), in environments of their own."""

import io
import os

import numpy as np
from PIL import Image

from tests.support import missing
from tests.support.peers import FOLDER, build_peers


def tools(environment="peers_evaluation"):
    """The interpreter of an environment of `tests.support.peers`.

    Skips the test where the tools are not installed; with CI=true it installs them.
    """
    if not (FOLDER / environment / "bin/python").exists() and os.environ.get("CI") != "true":
        missing(f"needs the tools of .align/{environment}: with CI=true these tests install them")
    return build_peers(environment)


def whole(picture, px):
    """A picture as open_clip prepares it: all of it, in a square, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize((px, px), Image.Resampling.BILINEAR))
