"""Format `webdataset`: CLIP_benchmark's layout of webdataset's tars.

    SPLIT/nshards.txt, SPLIT/0.tar, SPLIT/1.tar, ...
    classnames.txt, zeroshot_classification_templates.txt ({c} for the class), dataset_type.txt (`retrieval` or other)

A sample is a picture with `.cls` (a number) or `.txt` (one caption per line): consecutive members of one name. A tar is
read once from its start to its end; then its pictures are read from their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Split
from align.formats.evaluation_sets.align_tar import TarPictures
from align.formats.evaluation_sets.files import MAX_PICTURE_BYTES, exists, joined, lines_of, made, text_of
from align.formats.img2dataset import IMAGE_EXTENSIONS
from align.formats.sample_texts import sample_name
from align.formats.tar_members import DamagedTar, Member, read_members
from align.interfaces.store import Files

#: A sample's member and its bytes, by its ending.
_Parts = dict[str, tuple[Member, bytes]]


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
    stamps: dict[str, str] = {}
    images: list[EvaluationImage] = []
    places: list[tuple[str, int, int]] = []
    unusable: dict[str, str] = {}
    for name, split in splits:
        for tar in _tars(wanted, name, files):
            stamps[tar] = files.stamp(tar)
            for sample, parts in _samples(files, tar):
                key = f"{name}/{sample}" if len(splits) > 1 else sample
                picture = next((parts[ending][0] for ending in parts if ending in IMAGE_EXTENSIONS), None)
                about = _about(parts, names)
                if isinstance(about, str) or picture is None:
                    unusable[key] = about if isinstance(about, str) else "no picture"
                    continue
                label, texts = about
                images.append(EvaluationImage(key, key, texts, label, split))
                places.append((tar, picture.offset, picture.size))
    pictures = TarPictures(files, stamps, places)
    return made(wanted, images, pictures, classes=names, templates=templates, unusable=unusable)


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


def _samples(files: Files, uri: str) -> Iterator[tuple[str, _Parts]]:
    """Name and members of each sample of a tar."""
    try:
        with files.open(uri) as stream:
            for name, members in groupby(_members(stream), key=itemgetter(0)):
                parts: _Parts = {}
                for _, ending, member, data in members:
                    if ending in parts:
                        raise DataError(f"{uri}: sample {name} has two members .{ending}; write the tar again")
                    parts[ending] = member, data
                yield name, parts
    except DamagedTar as error:
        raise DataError(f"{uri}: not a readable tar ({error}); fetch it again") from None


def _members(stream: BinaryIO) -> Iterator[tuple[str, str, Member, bytes]]:
    """Sample, ending, place and bytes of each member with an ending. All are read: the stream goes forwards only."""
    for member in read_members(stream):
        sample, ending = sample_name(member.name)
        if ending and not member.problem:
            stream.seek(member.offset)
            yield sample, ending, member, stream.read(min(member.size, MAX_PICTURE_BYTES + 1))


def _about(parts: _Parts, names: Sequence[str]) -> tuple[str | None, tuple[str, ...]] | str:
    """Class and texts of a sample, or why it is not an item."""
    if any(member.size > MAX_PICTURE_BYTES for member, _ in parts.values()):
        return "more than 64 MiB"
    if not names:
        try:
            texts = tuple(line.strip() for line in parts["txt"][1].decode().split("\n") if line.strip())
        except (KeyError, UnicodeDecodeError):
            return "no captions (.txt in UTF-8)"
        return (None, texts) if texts else "its .txt has no caption"
    try:
        label = int(parts["cls"][1].decode())
    except (KeyError, ValueError):
        return "no class (a number in .cls)"
    if not 0 <= label < len(names):
        return f"its class is {label}, but there are {len(names):,} names"
    return names[label], (names[label],)
