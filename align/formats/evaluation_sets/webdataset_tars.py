"""Format `webdataset`: CLIP_benchmark's layout on webdataset. The only module that imports `webdataset`.

    SPLIT/nshards.txt, SPLIT/0.tar, SPLIT/1.tar, ...
    classnames.txt, zeroshot_classification_templates.txt ({c} for the class), dataset_type.txt (`retrieval` or other)

A sample is a picture with `.cls` (a number) or `.txt` (one caption per line). Samples are grouped by webdataset itself,
so what its writers write is read as its readers read it. A tar is read from its start to its end, in each pass.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from webdataset.tariterators import group_by_keys, tar_file_expander

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Split, Unreadable
from align.formats.evaluation_sets.files import MAX_PICTURE_BYTES, exists, joined, lines_of, made, text_of
from align.formats.img2dataset import IMAGE_EXTENSIONS
from align.interfaces.store import Files


@dataclass(frozen=True)
class _TarPictures:
    """`Pictures` of samples, by ascending positions.

    Attributes:
        files: reads the tars.
        tars: their addresses.
        places: for each item its tar, and the number of its sample in the tar.
    """

    files: Files
    tars: Sequence[str]
    places: Sequence[tuple[int, int]]

    def __call__(self, positions: Sequence[int]) -> Iterator[bytes | Unreadable]:
        """See `Pictures`."""
        for tar, places in groupby((self.places[position] for position in positions), key=itemgetter(0)):
            numbers = {number for _, number in places}
            samples = islice(_samples(self.files, self.tars[tar]), max(numbers) + 1)
            yield from (_picture(sample) for number, sample in enumerate(samples) if number in numbers)


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set.

    Raises:
        DataError: a file of the layout is missing, or a tar is damaged; see `files.made`.
    """
    captions = "retrieval" in wanted.tasks
    names = () if captions else tuple(_names(wanted, files))
    templates = () if captions or wanted.templates else _templates(wanted, files)
    splits: list[tuple[str, Split]] = [(wanted.split, "query")]
    splits += [(wanted.reference, "reference")] if wanted.learns else []
    tars: list[str] = []
    images: list[EvaluationImage] = []
    places: list[tuple[int, int]] = []
    unusable: dict[str, str] = {}
    for name, split in splits:
        for tar in _tars(wanted, name, files):
            tars.append(tar)
            for number, sample in enumerate(_samples(files, tar)):
                key = f"{name}/{sample['__key__']}" if len(splits) > 1 else str(sample["__key__"])
                about = _about(sample, names)
                if isinstance(about, str):
                    unusable[key] = about
                    continue
                label, texts = about
                images.append(EvaluationImage(key, key, texts, label, split))
                places.append((len(tars) - 1, number))
    return made(
        wanted, images, _TarPictures(files, tars, places), classes=names, templates=templates, unusable=unusable
    )


def _names(wanted: SuiteSet, files: Files) -> list[str]:
    uri = wanted.classnames or joined(wanted.path, "classnames.txt")
    return lines_of(files, uri, f"the names of the classes of {wanted.name}")


def _templates(wanted: SuiteSet, files: Files) -> tuple[str, ...]:
    """The set's own, with {} for {c}; empty if it has none."""
    uri = joined(wanted.path, "zeroshot_classification_templates.txt")
    if not exists(uri, files):
        return ()
    lines = lines_of(files, uri, "the templates")
    if wrong := [line for line in lines if line.count("{c}") != 1 or "{}" in line]:
        raise DataError(f"{uri}: template {wrong[0]!r} has no {{c}} for the name of the class, or more than one")
    return tuple(line.replace("{c}", "{}") for line in lines)


def _tars(wanted: SuiteSet, split: str, files: Files) -> list[str]:
    uri = joined(wanted.path, split, "nshards.txt")
    text = text_of(files, uri, f"the number of tars of split {split}").strip()
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 100_000:
        raise DataError(f"{uri}: {text[:40]!r} is no number of tars")
    return [joined(wanted.path, split, f"{number}.tar") for number in range(int(text))]


def _samples(files: Files, uri: str) -> Iterator[dict[str, Any]]:
    """The samples of a tar, member's ending -> bytes, as webdataset groups them."""
    try:
        with files.open(uri) as stream:
            members = tar_file_expander([{"url": uri, "stream": stream}])
            yield from group_by_keys(members)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 -- tarfile and webdataset raise many kinds over a damaged tar
        raise DataError(f"{uri}: not a readable tar ({' '.join(str(error).split())[:200]}); fetch it again") from None


def _about(sample: dict[str, Any], names: Sequence[str]) -> tuple[str | None, tuple[str, ...]] | str:
    """Class and texts of a sample, or why it is not an item."""
    if not names:
        try:
            texts = tuple(line.strip() for line in sample["txt"].decode().split("\n") if line.strip())
        except (KeyError, UnicodeDecodeError):
            return "no captions (.txt in UTF-8)"
        return (None, texts) if texts else "its .txt has no caption"
    try:
        label = int(sample["cls"].decode())
    except (KeyError, ValueError):
        return "no class (a number in .cls)"
    if not 0 <= label < len(names):
        return f"its class is {label}, but there are {len(names):,} names"
    return names[label], (names[label],)


def _picture(sample: dict[str, Any]) -> bytes | Unreadable:
    found = next((sample[ending] for ending in sample if ending.lower() in IMAGE_EXTENSIONS), None)
    if found is None:
        return Unreadable("the sample has no picture")
    if isinstance(found, io.IOBase) or len(found) > MAX_PICTURE_BYTES:
        return Unreadable("more than 64 MiB")
    return bytes(found)
