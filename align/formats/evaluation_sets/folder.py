"""Format `folder`: PATH/SPLIT/CLASS/picture, as torchvision's ImageFolder reads it; folders below a class count, too.

Without a folder of the split's name, PATH itself holds the classes. Names of classes: those of their folders, or a
file.
"""

from __future__ import annotations

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Split
from align.formats.evaluation_sets.files import FilePictures, class_names, joined, made
from align.formats.table import PICTURE_SUFFIXES
from align.interfaces.store import Files


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError if it has no pictures, or names do not fit; see `files.made`."""
    parts: list[tuple[str, Split]] = [(wanted.split, "query")]
    parts += [(wanted.reference, "reference")] if wanted.learns else []
    found: list[tuple[str, str, str, Split]] = []  # class, key, address, split
    roots = [_root(wanted, name, files) for name, _ in parts]
    for (name, split), root in zip(parts, roots, strict=True):
        for uri in files.list(f"{root}/", PICTURE_SUFFIXES):
            key = uri.removeprefix(root).lstrip("/")
            label, _, file = key.partition("/")
            if file and not file.rpartition("/")[2].startswith("."):
                found.append((label, f"{name}/{key}", uri, split))
    labels = sorted({label for label, _, _, _ in found})
    if len(labels) < 2:
        raise DataError(
            f"evaluation set {wanted.name}: {wanted.path}: {len(labels)} class folder(s) with pictures; expected "
            f"{wanted.path}/{wanted.split}/CLASS/*.jpg"
        )
    names = class_names(files, wanted.classnames, labels, more=wanted.among is not None)
    images = [EvaluationImage(key, key, (names[label],), names[label], split) for label, key, _, split in found]
    pictures = FilePictures(files, [uri for _, _, uri, _ in found], roots)
    return made(wanted, images, pictures, classes=[names[label] for label in labels])


def _root(wanted: SuiteSet, split: str, files: Files) -> str:
    """The folder of a split, or PATH itself where no split has one and only one is wanted."""
    root = joined(wanted.path, split)
    try:
        files.list(f"{root}/", PICTURE_SUFFIXES)
    except DataError:
        if wanted.learns:
            raise DataError(
                f"evaluation set {wanted.name}: {root}: no pictures of split {split}; name `split` and `reference`"
            ) from None
        return joined(wanted.path)
    return root
