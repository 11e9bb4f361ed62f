"""What somebody has who follows docs/own-model.md: a stand-in for align-base, and photographs with captions."""

import csv

import numpy as np
import torch
from PIL import Image

from align.formats.model_folder import tokenizer_of
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import ImageTower, estimate_statistics
from align.model.tokenizer import TextTokenizer
from align.release.exchange.interchange import write_hugging_face
from tests.support import tiny_model

_ANIMALS = ("fox", "owl", "horse", "deer", "otter", "crane", "hare", "lynx", "seal", "toad")
_PLACES = ("river", "forest", "harbour", "meadow", "bridge", "garden", "mountain", "village", "desert", "island")


def write(root, num_pictures=100):
    """Writes `root/align-base`, in Hugging Face's format, and `root/photos` with a CSV of captions."""
    write_align_base(root)
    write_photos(root, num_pictures)


def write_photos(root, num_pictures=80):
    """Writes `root/photos`: pictures, and a CSV of captions of eight words, every tenth of ten; also `root/texts.txt`
    with some of them.
    """
    images = root / "photos" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(num_pictures):
        blurred = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blurred).resize((320, 240)).save(images / f"{number:03d}.jpg")
        animal, place = _ANIMALS[number % len(_ANIMALS)], _PLACES[number // len(_ANIMALS)]
        rests = "rests at noon" if number % 10 == 9 else "rests"
        rows.append((f"images/{number:03d}.jpg", f"a young {animal} {rests} beside the old {place}"))
    with (root / "photos/captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    (root / "texts.txt").write_text("".join(f"{text}\n" for _, text in rows[:8]))


def write_align_base(root):
    """Writes `root/align-base`, and `root/made`, from which it is made."""
    trained = tiny_model.write(root / "made")
    config = tiny_model.TINY.model_copy(update={"embed_width": ImageTower(tiny_model.TINY).width})
    torch.manual_seed(0)
    model = DualEncoder(config, TextTokenizer.load(tokenizer_of(trained), config.max_tokens).vocab_size)
    estimate_statistics(model.vision_model, [torch.rand(8, 3, config.image_px, config.image_px) * 2 - 1])
    (root / "align-base").mkdir()
    write_hugging_face(model, tokenizer_of(trained), root / "align-base")
