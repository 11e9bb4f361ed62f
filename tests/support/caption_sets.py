"""Pictures with captions, and the file of a split of Karpathy's about them."""

import json

from tests.support.class_sets import picture

PICTURES = {f"{n}.jpg": picture(n, "test") for n in range(3)}
CAPTIONS = {"0.jpg": ["a cat", "A cat", "a cat"], "1.jpg": ["a cat, asleep"], "2.jpg": ["an owl"]}


def pictures(folder):
    folder.mkdir(parents=True)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)


def karpathy(path, **changes):
    images = [
        {"filename": name, "split": "train" if name == "2.jpg" else "test", "sentences": [{"raw": text} for text in of]}
        for name, of in CAPTIONS.items()
    ]
    images[0] |= changes
    path.write_text(json.dumps({"images": images}))
    return path
