"""Evaluation sets in our own format: a small one, whose header and members a test can change, and any other."""

import json

from align.durable.files import sha256_file
from align.formats.tar import TarWriter
from tests.support.tars import tar
from tests.support.training_data import COLOURS, samples


def write_set(directory, name="concepts", **changes):
    """A set of two images; `changes` overrides header fields, `members` the tar's files."""
    rows = [
        {"key": "a1", "concept": "heart", "texts": ["red heart"], "class": "symbols", "vendor": "noto",
         "split": "query"},
        {"key": "b1", "concept": "rose", "texts": ["rose", "flower"], "class": "plants", "vendor": None,
         "source_url": "https://example.org/rose", "split": "reference"},
    ]  # fmt: skip
    members = changes.pop("members", None)
    if members is None:
        members = {f"{row['key']}.json": json.dumps(row).encode() for row in rows}
        members |= {f"{row['key']}.jpg": f"bytes of {row['key']}".encode() for row in rows}
    directory.mkdir(parents=True, exist_ok=True)
    tar(directory / f"{name}.tar", dict(sorted(members.items())))
    header = {
        "schema_version": 1, "name": name, "kind": "retrieval", "num_images": 2, "num_texts": 3, "num_concepts": 2,
        "sha256": sha256_file(directory / f"{name}.tar"), "description": "two things",
    }  # fmt: skip
    (directory / f"{name}.json").write_text(json.dumps(header | changes))
    return directory


def write_items(directory, one):
    """Writes NAME.tar and NAME.json of a set, images in the order of their keys; returns the sha256 of the tar."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{one.name}.tar"
    with path.open("wb") as file:
        tar_file = TarWriter(file)
        for position, picture in one.read(sorted(range(len(one.images)), key=lambda place: one.images[place].key)):
            image = one.images[position]
            fields = {
                "key": image.key, "concept": image.concept, "texts": list(image.texts), "class": image.label,
                "split": image.split,
            }  # fmt: skip
            tar_file.add((f"{image.key}.jpg", picture), (f"{image.key}.json", json.dumps(fields).encode()))
        tar_file.close()
    header = {
        "schema_version": 1, "name": one.name, "kind": one.kind, "description": one.description,
        "num_images": len(one.images), "sha256": sha256_file(path), "classes": one.classes, "templates": one.templates,
        "num_texts": len({(image.concept, text) for image in one.images for text in image.texts}),
        "num_concepts": len({image.concept for image in one.images}),
    }  # fmt: skip
    (directory / f"{one.name}.json").write_text(json.dumps(header))
    return sha256_file(path)


def write_coloured_set(directory, name):
    """Set `pairs` of captions or `classes` of colours, of `training_data`'s pictures; one of them is no picture."""
    classes = name == "classes"
    members = {}
    for number, sample in enumerate(samples(24, first=2000)):
        split = "reference" if classes and number % 3 else "query"
        row = {"key": sample.key, "concept": f"c{number % 16}", "texts": list(sample.texts), "vendor": None,
               "class": list(COLOURS)[number % 4], "split": split}  # fmt: skip
        members[f"{sample.key}.json"] = json.dumps(row).encode()
        members[f"{sample.key}.jpg"] = b"no picture" if number == 9 else sample.image
    more = {"kind": "classification", "classes": list(COLOURS), "templates": ["a {} bar"]}
    counts = {"num_images": 24, "num_texts": 32, "num_concepts": 16}
    write_set(directory, name, members=members, **counts, **(more if classes else {}))
