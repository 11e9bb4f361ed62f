"""Rule `image_semantic_repeat` on the study's pictures: one view of each, and no hash. Prints a table of README.md.

python -m benchmarks.near_duplicates.alike
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.filter.near_duplicates import Embeddings, read_embeddings, write_embeddings
from align.filter.network import ImageNetwork
from align.pairs.picture import decode
from benchmarks.near_duplicates.edits import EDITS
from benchmarks.near_duplicates.labelled import labelled_pairs
from benchmarks.near_duplicates.pictures import MAX_PIXELS, archive_pictures, drawn, evaluation_pictures
from tests.support import ROOT

SAMPLE = ROOT / "data" / "sample"
NUM_PLANTED = 200
CUTS = 0.985, 0.975, 0.95


def main() -> None:
    tests, pairs = evaluation_pictures(SAMPLE), labelled_pairs()
    images, _ = archive_pictures(SAMPLE, {pair.image_id for pair in pairs})
    names = drawn(tests, NUM_PLANTED)
    network = ImageNetwork(None, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:

        def embedded(name: str, pictures: Iterable[tuple[str, bytes]]) -> Embeddings:
            rows = ((row.name, row.embedding) for row in network.measure(pictures, max_pixels=MAX_PIXELS))
            write_embeddings(Path(folder) / name, rows, network.width)
            return read_embeddings(Path(folder) / name)

        originals, ours = embedded("tests", tests.items()), embedded("images", images.items())
        planted = embedded("planted", copies({name: tests[name] for name in names}))
    print_tables(originals, planted, ours)


def copies(pictures: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """(EDIT|NAME, bytes) of every edit of these pictures."""
    for name, data in pictures.items():
        image = decode(data, max_pixels=MAX_PIXELS)
        yield from ((f"{edit}|{name}", change(image)) for edits in EDITS.values() for edit, change in edits.items())


def print_tables(originals: Embeddings, planted: Embeddings, images: Embeddings) -> None:
    """The share of copies above each cut, by edit; and the labelled pairs above it, by label."""
    places = {name: row for row, name in enumerate(originals.names)}
    own = cosines(planted, originals, [places[name.partition("|")[2]] for name in planted.names])
    for kind, edits in EDITS.items():
        for edit in edits:
            mine = own[[name.startswith(f"{edit}|") for name in planted.names]]
            print(f"| {kind} | {edit} |", *(f"{(mine > cut).sum() / NUM_PLANTED:.3f} |" for cut in CUTS))
    pairs, rows = labelled_pairs(), {name: row for row, name in enumerate(images.names)}
    ours = Embeddings([pair.image_id for pair in pairs], images.vectors[[rows[pair.image_id] for pair in pairs]])
    close = cosines(ours, originals, [places[pair.evaluation] for pair in pairs])
    for label in ("copy", "mirrored", "no"):
        mine = close[[pair.same == label for pair in pairs]]
        print(f"| `{label}` | {len(mine)} |", *(f"{(mine > cut).sum()} |" for cut in CUTS))


def cosines(left: Embeddings, right: Embeddings, rows: list[int]) -> NDArray[np.float64]:
    """Of each image with one of the others, as the rule rounds them."""
    return np.asarray((left.vectors.astype(np.float64) * right.vectors[rows]).sum(axis=1).round(4))


if __name__ == "__main__":
    main()
