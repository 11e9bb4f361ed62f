"""Format `align`: NAME.tar (images with their texts) and NAME.json (description, the tar's sha256).

A tar sample is `KEY.jpg` and `KEY.json` (key, concept, texts, class, vendor, source_url, split).
In a retrieval set a text of concept c is relevant to every image of concept c; in a classification set `class` is the
label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.errors import CorruptError, DataError, FormatError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Kind, Split, Unreadable
from align.formats.tar_members import DamagedTar, read_members
from align.interfaces.store import Files

#: Bytes of one sample's json: far more than there is to say about a picture.
_MAX_JSON_BYTES = 16 << 20


class _SetHeader(BaseModel):
    """NAME.json. Other keys describe the set to people and are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    schema_version: Literal[1]
    name: str
    kind: Kind
    num_images: int
    num_texts: int
    num_concepts: int
    sha256: str
    description: str
    classes: list[str] = []
    templates: list[str] = []


class _SampleFields(BaseModel):
    """KEY.json in the tar. Other keys (the source's URL, ...) are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    key: str
    concept: str
    texts: tuple[str, ...]
    label: str | None = Field(default=None, alias="class")
    split: Split = "query"


class _Here:
    """Files on this machine, as `Files` reads them."""

    def open(self, uri: str) -> BinaryIO:
        """Raises DataError if there is no such file."""
        try:
            return Path(uri).open("rb")
        except OSError as error:
            raise DataError(f"{uri}: {error.strerror}") from None

    def stamp(self, uri: str) -> str:
        """Size and time."""
        try:
            status = Path(uri).stat()
        except OSError as error:
            raise DataError(f"{uri}: {error.strerror}") from None
        return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class _TarPictures:
    """`Pictures` of a tar that was checked, in any order of positions.

    Attributes:
        files: reads it.
        uri: of the tar.
        stamp: its stamp when it was checked: a tar that was replaced since holds other pictures.
        spans: (offset, size) of each picture.
    """

    files: Files | _Here
    uri: str
    stamp: str
    spans: list[tuple[int, int]]

    def __call__(self, positions: Sequence[int]) -> Iterator[bytes | Unreadable]:
        try:
            file = self.files.open(self.uri)
            stamp = self.files.stamp(self.uri)  # of the file that is open, or of a later one
        except DataError:
            raise DataError(f"{self.uri}: removed while it was read; repeat the command") from None
        with file:
            if stamp != self.stamp:
                raise DataError(f"{self.uri}: replaced while it was read; repeat the command")
            for position in positions:
                offset, size = self.spans[position]
                file.seek(offset)
                yield file.read(size)


def load_sets(directory: Path) -> list[EvaluationSet]:
    """Reads every set of a folder, sorted by name, images in tar order; none if the folder is empty.

    Raises:
        FormatError: a header or a sample has a layout that this code does not read.
        CorruptError: the tar's bytes do not match the header's sha256.
        DataError: the folder or a tar is missing, or a sample is incomplete.
    """
    if not directory.is_dir():
        what = "is a file, not a folder" if directory.exists() else "no such folder"
        remedy = "make it (it may be empty), or correct paths.evaluation"
        raise DataError(f"{directory}: {what} of evaluation sets; {remedy}")
    return [load_set(header) for header in sorted(directory.glob("*.json"))]


def load_set(uri: Path | str, files: Files | None = None) -> EvaluationSet:
    """Reads the set of one header, NAME.json. Raises as `load_sets`.

    Args:
        uri: of the header; the tar is beside it.
        files: reads an s3:// address; the tar is read once to check it, and then by ranges. None: it is a path.
    """
    header_uri, source = str(uri), files or _Here()
    file_name = header_uri.rpartition("/")[2]
    try:
        with source.open(header_uri) as stream:
            data = stream.read()
    except DataError as error:
        what = f"{error}; give NAME.json of an evaluation set, with NAME.tar beside it"
        raise DataError(what.replace("No such file or directory", "no such file")) from None
    try:
        header = _SetHeader.model_validate_json(data)
    except ValidationError as error:
        raise FormatError(f"{header_uri}: not the header of an evaluation set: {_first_problem(error)}") from None
    if header.name != file_name.removesuffix(".json"):  # two sets of one name would overwrite each other's metrics
        raise FormatError(
            f"{header_uri}: its name is {header.name!r}; a set's files have its name, so rename one of them"
        )
    tar = header_uri.removesuffix(".json") + ".tar"
    try:
        stamp = source.stamp(tar)
        file = source.open(tar)
    except DataError:
        raise DataError(f"{tar}: missing, although {file_name} describes it; restore it or remove the header") from None
    with file:
        total = hashlib.sha256()
        while part := file.read(1 << 20):
            total.update(part)
        if total.hexdigest() != header.sha256:
            raise CorruptError(f"{tar}: sha256 differs from the one in {file_name}; fetch or build the set again")
        images, spans = _read_tar(file, tar)
    pictures = _TarPictures(source, tar, stamp, spans)
    if len(images) != header.num_images:
        raise DataError(f"{tar}: {len(images)} images, but {file_name} says {header.num_images}")
    if header.kind == "classification" and not (header.classes and header.templates):
        raise FormatError(f"{header_uri}: a classification set needs classes and templates")
    for image in images:
        if header.kind == "classification" and image.label not in header.classes:
            raise DataError(f"{tar}: image {image.key} has class {image.label!r}, which {file_name} does not list")
    return EvaluationSet(
        name=header.name,
        kind=header.kind,
        description=header.description,
        images=images,
        classes=tuple(header.classes),
        templates=tuple(header.templates),
        pictures=pictures,
        sha256=header.sha256,
    )


def _read_tar(file: BinaryIO, uri: str) -> tuple[list[EvaluationImage], list[tuple[int, int]]]:
    """The items, and the span of each picture."""
    spans: dict[str, tuple[int, int]] = {}
    members: dict[str, _SampleFields] = {}
    try:
        for entry in read_members(file):
            if entry.problem:
                raise DataError(f"{uri}: {entry.name}: {entry.problem}; build the set again")
            key, _, extension = entry.name.rpartition(".")
            if extension != "json":
                spans[key] = entry.offset, entry.size
                continue
            if entry.size > _MAX_JSON_BYTES:
                raise FormatError(f"{uri}: {entry.name}: {entry.size:,} bytes of JSON about one picture")
            file.seek(entry.offset)
            try:
                members[key] = _SampleFields.model_validate_json(file.read(entry.size))
            except ValidationError as error:
                raise FormatError(f"{uri}: {entry.name}: {_first_problem(error)}") from None
    except DamagedTar as error:
        raise DataError(f"{uri}: not a readable tar ({error}); build the set again") from None
    if incomplete := sorted(spans.keys() ^ members.keys()):
        raise DataError(f"{uri}: sample {incomplete[0]} lacks its image or its json")
    return [EvaluationImage(**dict(member)) for member in members.values()], [spans[key] for key in members]


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
