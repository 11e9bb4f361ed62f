"""Plants edited copies of evaluation images among the training images, and counts which ones the rule finds."""

from dataclasses import dataclass

from align.pairs.picture import decode
from tests.support.near_duplicates.edits import EDITS
from tests.support.near_duplicates.labelled import found_by_embedding, found_by_hash
from tests.support.near_duplicates.pictures import MAX_PIXELS


@dataclass(frozen=True)
class Recall:
    """Shares of the planted copies that are found."""

    kind: str
    edit: str
    by_hash: float
    by_embedding: float
    by_rule: float


def recall(pictures, references, network, folder, kinds=tuple(EDITS)):
    """The share of pictures that are found as a near-duplicate of their original, for each edit.

    Args:
        pictures: the evaluation images to plant copies of; some of `references`.
        references: the evaluation images to look for.
        network: as the filter uses it.
        folder: for the embeddings.
        kinds: of edits.
    """
    originals = {name: decode(data, max_pixels=MAX_PIXELS) for name, data in pictures.items()}
    edits = [(kind, edit, change) for kind in kinds for edit, change in EDITS[kind].items()]
    planted = {f"{edit}|{name}": change(image) for _, edit, change in edits for name, image in originals.items()}
    embedded = {pair for pair in found_by_embedding(planted, references, network, folder) if _own(pair)}
    hashed = {pair for pair in found_by_hash(planted, references) if _own(pair)}

    def share(matches, edit):
        return sum(name.startswith(f"{edit}|") for name, _ in matches) / len(pictures)

    return [
        Recall(kind, edit, *(share(matches, edit) for matches in (hashed, embedded, hashed | embedded)))
        for kind, edit, _ in edits
    ]


def _own(pair):
    return pair[0].endswith(f"|{pair[1]}")
