"""Edits that pictures undergo on the web: the copies that rule I5 must recognise."""

import hashlib
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Two sides of this length keep 90 % of the area.
TENTH_OF_AREA = math.sqrt(0.9)


def encoded(image, kind="JPEG", quality=85):
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def resized(image, across, down=None):
    size = round(image.width * across), round(image.height * (down or across))
    return image.resize((max(1, size[0]), max(1, size[1])), Image.Resampling.LANCZOS)


def cropped(image, keep):
    """Keeps this share of each side, at an offset drawn by the picture's own pixels."""
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big"))
    width, height = round(keep * image.width), round(keep * image.height)
    left, top = (int(draw.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def flipped(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def watermarked(image, text, height, centre):
    """Half-transparent text: small in the lower right corner, or large across the middle."""
    over = Image.new("RGBA", image.size, (0, 0, 0, 0))
    font = ImageFont.load_default(max(8, round(height * image.height)))
    share, anchor = ((0.5, 0.5), "mm") if centre else ((0.97, 0.97), "rs")
    at = share[0] * image.width, share[1] * image.height
    ImageDraw.Draw(over).text(at, text, font=font, fill=(96, 96, 96, 144), anchor=anchor)
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


#: Kind -> name of the edit -> what it does to an RGB picture.
EDITS = {
    "re-encode": {
        "JPEG, quality 90": lambda image: encoded(image, quality=90),
        "JPEG, quality 60": lambda image: encoded(image, quality=60),
        "JPEG, quality 30": lambda image: encoded(image, quality=30),
        "WebP, quality 60": lambda image: encoded(image, "WEBP", 60),
    },
    "resize": {
        "to a third": lambda image: encoded(resized(image, 1 / 3)),
        "to a half": lambda image: encoded(resized(image, 1 / 2)),
        "to the double": lambda image: encoded(resized(image, 2)),
        "height by 0.9": lambda image: encoded(resized(image, 1, 0.9)),
    },
    "10 % crop": {"90 % of the area": lambda image: encoded(cropped(image, TENTH_OF_AREA))},
    "larger crop": {
        "90 % of each side": lambda image: encoded(cropped(image, 0.9)),
        "80 % of each side": lambda image: encoded(cropped(image, 0.8)),
    },
    "flip": {"left to right": lambda image: encoded(flipped(image))},
    "watermark": {
        "small, in a corner": lambda image: encoded(watermarked(image, "© example.com", 1 / 12, centre=False)),
        "large, across": lambda image: encoded(watermarked(image, "SAMPLE", 1 / 6, centre=True)),
    },
    "several at once": {
        "a third, quality 30": lambda image: encoded(resized(image, 1 / 3), quality=30),
        "half, crop, watermark": lambda image: encoded(
            watermarked(cropped(resized(image, 1 / 2), TENTH_OF_AREA), "© example.com", 1 / 12, centre=False)
        ),
        "flip, crop, quality 60": lambda image: encoded(flipped(cropped(image, TENTH_OF_AREA)), quality=60),
    },
}
