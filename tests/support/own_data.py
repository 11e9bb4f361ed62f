"""What somebody has who follows docs/own-data.md: pictures with sentences, in each of the forms that the page names."""

import csv
import io

import numpy as np
from PIL import Image

from tests.support.img2dataset_folder import Options, Row, write_folder
from tests.support.web_server import after_failures, response

#: Pictures in each form.
NUM = 100
_WHO = ("people", "children", "dogs", "horses", "sailors", "dancers", "cyclists", "farmers", "birds", "tourists")
_WHERE = ("river", "forest", "harbour", "meadow", "bridge", "garden", "mountain", "village", "desert", "island")
#: What img2dataset is told on the page.
_IMG2DATASET = Options(resize_mode="keep_ratio", image_size=240)


def sentence(number):
    """A text of its own for each of a hundred pictures."""
    return f"a group of {_WHO[number % len(_WHO)]} waits beside the old {_WHERE[number // len(_WHO)]}"


def jpeg(seed):
    """A picture of 320 x 240 that resembles no other."""
    blurred = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blurred).resize((320, 240)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_captions(root):
    """Writes `root/captions`: pictures, and captions.csv with the columns `file` and `text`."""
    folder = root / "captions"
    folder.mkdir()
    for number in range(NUM):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number))
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = [(f"{number:03d}.jpg", sentence(number)) for number in range(NUM)]
        # A picture may have several lines.
        csv.writer(file).writerows([("file", "text"), *rows, ("000.jpg", "some people who wait for a boat")])


def write_sources(root):
    """Writes `root/captions` as above, its table with the columns `file`, `alt` and `synthetic`: every third cell of
    `alt` is empty.
    """
    write_captions(root)
    with (root / "captions" / "captions.csv").open("w", newline="") as file:
        rows = [
            (f"{number:03d}.jpg", f"{sentence(number)} at noon" if number % 3 else "", sentence(number))
            for number in range(NUM)
        ]
        csv.writer(file).writerows([("file", "alt", "synthetic"), *rows])


def write_pairs(root):
    """Writes `root/pairs`, a folder as img2dataset makes it; one picture was gone."""
    rows = [
        Row(f"/{n:03d}.jpg", sentence(n), "/page", jpeg(n) if n else None) for n in range(NUM)
    ]  # fmt: skip
    write_folder(root / "pairs", rows, _IMG2DATASET)


def write_addresses(root, server, busy, attempts):
    """Writes `root/train.tsv` in the form of Conceptual Captions, and puts its pictures on a server, which answers HTTP
    503 so many times for the busy ones.
    """
    lines = []
    for number in range(NUM):
        path, failures = f"/{number:03d}.jpg", attempts if number in busy else 0
        server.routes[path] = after_failures(failures, response(b"", 503), jpeg(number))
        lines.append(f"{sentence(number)}\t{server.url(path)}\n")
    (root / "train.tsv").write_text("".join(lines))


def write_classes(root, per_class=4):
    """Writes `root/clothing/{train,test}/CLASS/N.jpg`."""
    seed = 1000
    for part in ("train", "test"):
        for name in ("coat", "hat", "shoe"):
            folder = root / "clothing" / part / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                (folder / f"{number}.jpg").write_bytes(jpeg(seed))
                seed += 1
