"""Pictures with smooth random colours, which survive resizing."""

import io

import numpy as np
from PIL import Image


def blurred_png(seed, size):
    """A PNG of (width, height) `size`: 7 x 9 random pixels, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
