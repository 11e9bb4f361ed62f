"""Reads and writes evaluation sets: NAME.tar (images with their texts) and NAME.json (description, the tar's sha256).

A tar sample is `KEY.jpg` and `KEY.json` (key, concept, texts, class, vendor, source_url, split).
In a retrieval set a text of concept c is relevant to every image of concept c; in a classification set `class` is the
label.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.errors import CorruptError, DataError, FormatError
from align.files import to_json, write_bytes, write_text
from align.formats.tar import TarWriter
from align.formats.tar_members import DamagedTar, read_members

Kind = Literal["retrieval", "classification"]

#: The set of held-out pairs, which the filter writes into a folder of this name in paths.filtered.
HELD_OUT = "held_out"
#: Of the pictures of a set that is made here: filter, validate and evaluate read sets into memory as a whole.
MAX_SET_BYTES = 2 << 30


@dataclass(frozen=True)
class EvaluationImage:
    """One image of a set.

    Attributes:
        key: unique within its set.
        image: the file's bytes, as they came.
        concept: images and texts of one concept are relevant to each other; also the cluster of the bootstrap.
        texts: texts that describe this image.
        label: its class in a classification set, else None.
        vendor: who drew it; None if nobody in particular did.
        split: `query`, or `reference` for images whose label the nearest-neighbour classifier knows.
    """

    key: str
    image: bytes
    concept: str
    texts: tuple[str, ...]
    label: str | None
    vendor: str | None
    split: Literal["query", "reference"]


@dataclass(frozen=True)
class EvaluationSet:
    """A named set; `classes` and `templates` (with `{}` for the class name) are empty in a retrieval set.

    `sha256` is the tar's; empty for a set that is not stored as a file (the test split).
    """

    name: str
    kind: Kind
    description: str
    images: list[EvaluationImage]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    sha256: str = ""


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
    texts: list[str]
    label: str | None = Field(default=None, alias="class")
    vendor: str | None = None
    split: Literal["query", "reference"] = "query"


def load_sets(directory: Path) -> list[EvaluationSet]:
    """Reads every set of a folder, sorted by name, images in tar order.

    Returns:
        The sets; an empty list if the folder is empty, as that of a project without sets.

    Raises:
        FormatError: a header or a sample has a layout that this code does not read.
        CorruptError: the tar's bytes do not match the header's sha256.
        DataError: the folder or a tar is missing, or a sample is incomplete.
    """
    if not directory.is_dir():
        what = "is a file, not a folder" if directory.exists() else "no such folder"
        remedy = "make it (it may be empty), or correct paths.evaluation"
        raise DataError(f"{directory}: {what} of evaluation sets; {remedy}")
    return [_load(header) for header in sorted(directory.glob("*.json"))]


def held_out_sets(filtered: Path) -> list[EvaluationSet]:
    """The set `held_out` that the filter wrote beside its decisions; none if it held out nothing.

    Raises:
        DataError, CorruptError, FormatError: as `load_sets`.
    """
    folder = filtered / HELD_OUT
    return load_sets(folder) if folder.is_dir() else []


def write_set(directory: Path, one: EvaluationSet) -> str:
    """Writes NAME.tar and then NAME.json, each atomically; images in the order of their keys, so equal sets are equal
    bytes. An existing set of that name is replaced; a kill between the two files leaves a set that `load_sets` refuses.

    Args:
        directory: the folder of sets; made if it does not exist.
        one: the set; keys are ASCII, at most 95 characters long, and each occurs once. `sha256` is not read.

    Returns:
        The sha256 of the tar.

    Raises:
        ValueError: a key is too long or not ASCII.
    """
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    for image in sorted(one.images, key=lambda image: image.key):
        fields = {
            "key": image.key,
            "concept": image.concept,
            "texts": list(image.texts),
            "class": image.label,
            "vendor": image.vendor,
            "split": image.split,
        }
        about = json.dumps(fields, ensure_ascii=False).encode()
        tar.add((f"{image.key}.jpg", image.image), (f"{image.key}.json", about))
    tar.close()
    sha256 = hashlib.sha256(buffer.getbuffer()).hexdigest()
    header = _SetHeader(
        schema_version=1,
        name=one.name,
        kind=one.kind,
        description=one.description,
        num_images=len(one.images),
        num_texts=len({(image.concept, text) for image in one.images for text in image.texts}),
        num_concepts=len({image.concept for image in one.images}),
        sha256=sha256,
        classes=list(one.classes),
        templates=list(one.templates),
    )
    write_bytes(directory / f"{one.name}.tar", buffer.getvalue())
    write_text(directory / f"{one.name}.json", to_json(header.model_dump()))
    return sha256


def _load(path: Path) -> EvaluationSet:
    try:
        header = _SetHeader.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FormatError(f"{path}: not the header of an evaluation set: {_first_problem(error)}") from None
    if header.name != path.stem:  # two sets of one name would overwrite each other's metrics
        raise FormatError(f"{path}: its name is {header.name!r}; a set's files have its name, so rename one of them")
    tar = path.with_suffix(".tar")
    if not tar.exists():
        raise DataError(f"{tar}: missing, although {path.name} describes it; restore it or remove the header")
    data = tar.read_bytes()
    if hashlib.sha256(data).hexdigest() != header.sha256:
        raise CorruptError(f"{tar}: sha256 differs from the one in {path.name}; fetch or build the set again")
    images = _read_tar(data, tar)
    if len(images) != header.num_images:
        raise DataError(f"{tar}: {len(images)} images, but {path.name} says {header.num_images}")
    if header.kind == "classification" and not (header.classes and header.templates):
        raise FormatError(f"{path}: a classification set needs classes and templates")
    for image in images:
        if header.kind == "classification" and image.label not in header.classes:
            raise DataError(f"{tar}: image {image.key} has class {image.label!r}, which {path.name} does not list")
    return EvaluationSet(
        name=header.name,
        kind=header.kind,
        description=header.description,
        images=images,
        classes=tuple(header.classes),
        templates=tuple(header.templates),
        sha256=header.sha256,
    )


def _read_tar(data: bytes, path: Path) -> list[EvaluationImage]:
    pictures: dict[str, bytes] = {}
    members: dict[str, _SampleFields] = {}
    try:
        for entry in read_members(io.BytesIO(data)):
            if entry.problem:
                raise DataError(f"{path}: {entry.name}: {entry.problem}; build the set again")
            key, _, extension = entry.name.rpartition(".")
            content = data[entry.offset : entry.offset + entry.size]
            if extension == "json":
                try:
                    members[key] = _SampleFields.model_validate_json(content)
                except ValidationError as error:
                    raise FormatError(f"{path}: {entry.name}: {_first_problem(error)}") from None
            else:
                pictures[key] = content
    except DamagedTar as error:
        raise DataError(f"{path}: not a readable tar ({error}); build the set again") from None
    if incomplete := sorted(pictures.keys() ^ members.keys()):
        raise DataError(f"{path}: sample {incomplete[0]} lacks its image or its json")
    return [
        EvaluationImage(
            key=member.key,
            image=pictures[key],
            concept=member.concept,
            texts=tuple(member.texts),
            label=member.label,
            vendor=member.vendor,
            split=member.split,
        )
        for key, member in members.items()
    ]


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def distinct_images(sets: Sequence[EvaluationSet]) -> dict[bytes, list[str]]:
    """Every distinct image -> its names SET/KEY. Sets share images, and work per image is expensive."""
    names: dict[bytes, list[str]] = {}
    for one in sets:
        for image in one.images:
            names.setdefault(image.image, []).append(f"{one.name}/{image.key}")
    return names
