"""Tars as webdataset and img2dataset write them, with pictures of any size and all that can be wrong with them."""

import io
import json

import numpy as np
from PIL import Image

from tests.support.tars import tar

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}


def picture(number, form="JPEG"):
    """Noise around a colour, of a size of its own."""
    generator = np.random.default_rng(number)
    size = (40 + 7 * (number % 5), 50 + 11 * (number % 3), 3)
    pixels = generator.integers(-20, 20, size) + list(COLOURS.values())[number % 4]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def text(number):
    """Of that picture."""
    return f"a {list(COLOURS)[number % 4]} square number {number}"


def write(folder, *, num_tars=2, per_tar=20, first=0):
    """Tars 00000.tar, ...: of each four samples one has its text in .txt, one in both as img2dataset, two in .json."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_tars):
        members = {}
        for index in range(first + number * per_tar, first + (number + 1) * per_tar):
            form, ending = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"))[index % 3]
            members[f"{index:09d}.{ending}"] = picture(index, form)
            if index % 4 < 2:
                members[f"{index:09d}.txt"] = text(index).encode()
            if index % 4:
                caption = [text(index), f"also {text(index)}"] if index % 4 == 3 else text(index)
                members[f"{index:09d}.json"] = json.dumps({"caption": caption, "url": "https://a.example"}).encode()
        tar(folder / f"{number:05d}.tar", members)
    return folder
