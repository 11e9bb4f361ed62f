"""make_set: an evaluation set of one's own, from pictures in class folders or from a table of pictures -> NAME.tar.

    align make_set flickr --from captions.csv                            retrieval: pictures and captions
    align make_set clothing --from test --reference train                classification, and its nearest neighbours
    align make_set flowers --from flowers --reference 0.5                half of each class is the reference
    align make_set dogs --from labels.csv --class breed                  classification from a table

Everything is read and checked before anything is written, and all that is missing or wrong is said at once. Equal
inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from align.config import Params
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.paths import PathsConfig
from align.config.suite import TEMPLATES
from align.display.console import say, track
from align.durable.processes import in_threads
from align.durable.spool import Spool
from align.errors import DataError
from align.evaluate.set_sources import (
    Columns,
    Faults,
    Listed,
    is_table,
    is_utf8,
    name_classes,
    read_class_names,
    read_folder,
    read_table,
    some,
)
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Kind, Split
from align.formats.evaluation_sets.align_tar import write_set
from align.pairs.picture import PictureError, decode, read_header, shrink

#: Characters of a key.
_MAX_SLUG = 80
#: A JPEG may be decoded at a fraction of its size to see whether it decodes.
_HINT_PX = 256

#: Sets that `align evaluate` makes itself.
_RESERVED = ("test",)
#: Where the pictures of a table often are: in such a folder beside it, or beside its folder.
_USUAL_FOLDERS = ("images", "Images", "imgs", "img", "pictures", "photos", "flickr30k-images", "flickr8k-images")


@dataclass(frozen=True)
class Recipe:
    """What a set is made of.

    Attributes:
        name: of the set.
        sources: folders of class folders, or tables.
        columns: of the tables.
        images: the folder of the tables' pictures; None: each table's own folder.
        reference: the share of each class, or the folder or table, whose labels the nearest-neighbour classifier knows.
        classes: a file of folder -> readable name; None: the folder's name with spaces for underscores.
        templates: texts with {} for the name of a class.
        description: in a sentence; empty: from the sources.
        skip: leave out pictures at fault, instead of making no set.
        replace: replace a set of that name.
    """

    name: str
    sources: Sequence[Path]
    columns: Columns
    images: Path | None
    reference: float | Path | None
    classes: Path | None
    templates: Sequence[str]
    description: str
    skip: bool
    replace: bool


def make_set(recipe: Recipe, limits: Limits, evaluation: Path) -> tuple[EvaluationSet, Faults]:
    """Makes a set and writes it into the folder `evaluation`, which is made if it does not exist.

    Returns:
        The set, whose pictures cannot be read any more, and what was joined, or left out with `skip`.

    Raises:
        DataError: the set exists, a source or column is missing, or pictures are at fault: all are named together.
    """
    _check_name(recipe, evaluation)
    faults = Faults()
    queries = _listed(recipe, recipe.sources, faults)
    references = _listed(recipe, [recipe.reference], faults) if isinstance(recipe.reference, Path) else []
    kind = _kind(recipe, [*queries, *references])
    if kind == "classification":
        name_classes([*queries, *references], None if recipe.classes is None else read_class_names(recipe.classes))
    split_of: list[tuple[Listed, Split]] = [(one, "query") for one in queries]
    split_of += [(one, "reference") for one in references]
    with Spool(evaluation) as spool:
        images = read_pictures(split_of, limits, faults, spool)
        if faults.found and (not recipe.skip or not images):
            remedy = "correct these" if recipe.skip else "correct these, or leave them out with --skip"
            raise DataError(f"{recipe.name}: not written: {faults}; {remedy}{_where_missing(recipe, queries, faults)}")
        made = _set(recipe, kind, images, spool)
        write_set(evaluation, made)
    return made, faults


def _set(recipe: Recipe, kind: Kind, images: list[EvaluationImage], spool: Spool) -> EvaluationSet:
    """The set, whose pictures are in the spool. Raises DataError as `make_set`."""
    if isinstance(recipe.reference, float):
        images = _with_references(images, recipe.reference)
    made = EvaluationSet(
        name=recipe.name,
        kind=kind,
        description=recipe.description or f"From {', '.join(path.name for path in recipe.sources)}.",
        images=images,
        classes=tuple(sorted({str(image.label) for image in images})) if kind == "classification" else (),
        templates=tuple(recipe.templates) if kind == "classification" else (),
        pictures=spool.read,
    )
    _check_classes(made)
    return made


def _check_name(recipe: Recipe, evaluation: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", recipe.name):
        raise DataError(f"{recipe.name!r}: a set's name has letters, digits, - and _ only, and at most 64")
    if recipe.name in _RESERVED:
        raise DataError(f"{recipe.name}: `align evaluate` measures a set of this name itself; choose another name")
    if evaluation.exists() and not evaluation.is_dir():
        raise DataError(f"{evaluation}: is a file, not a folder; correct paths.evaluation")
    there = [path for path in (evaluation / f"{recipe.name}{end}" for end in (".json", ".tar")) if path.exists()]
    if there and not recipe.replace:
        raise DataError(f"{there[0]}: exists; replace the set with --replace, or choose another name")
    names = [path.name for path in (*recipe.sources, recipe.reference) if isinstance(path, Path)]
    if bad := [text for text in (*names, recipe.description, *recipe.templates) if not is_utf8(text)]:
        raise DataError(f"{bad[0]!r}: not UTF-8; rename it, or write it in UTF-8")
    for template in recipe.templates:
        if template.count("{}") != 1:
            raise DataError(f"--template {template!r}: has no {{}} for the name of the class, or more than one")


def _listed(recipe: Recipe, sources: Sequence[Path], faults: Faults) -> list[Listed]:
    """The pictures of some of the recipe's sources. Where it has several, their names begin with that of the source,
    and its number if some have the same name.
    """
    every = [path for path in (*recipe.sources, recipe.reference) if isinstance(path, Path)]
    same = len({path.name for path in every}) < len(every)
    first = 1 if sources is recipe.sources else len(every)
    listed = []
    for number, source in enumerate(sources, first):
        if source.is_dir():
            found = read_folder(source, faults)
        elif is_table(source):
            found = read_table(source, recipe.columns, recipe.images, faults)
        else:
            what = (
                "neither a folder nor a table (.csv, .tsv, .jsonl, .parquet)" if source.exists() else "does not exist"
            )
            raise DataError(f"{source}: {what}; give a folder of class folders, or a table of pictures")
        prefix = f"{number}_{source.name}" if same else source.name
        for one in found if len(every) > 1 else ():
            one.concept = f"{prefix}/{one.concept}" if one.concept == one.name else one.concept
            one.name = f"{prefix}/{one.name}"
        listed += found
    return listed


def _kind(recipe: Recipe, listed: Sequence[Listed]) -> Literal["retrieval", "classification"]:
    labelled = {one.label is not None for one in listed}
    if len(labelled) > 1:
        raise DataError(f"{recipe.name}: some of the pictures have a class, others have none; make two sets")
    if labelled == {True}:
        return "classification"
    if recipe.reference is not None or recipe.classes is not None:
        raise DataError(f"{recipe.name}: --reference and --classes need classes; give class folders, or --class COLUMN")
    return "retrieval"


def _with_references(images: Sequence[EvaluationImage], share: float) -> list[EvaluationImage]:
    """A share of each class as reference, by concept, at least one concept on each side where there are two.

    Which ones is decided by the hash of the concept, so a new picture moves no other one.
    """
    concepts: defaultdict[str | None, set[str]] = defaultdict(set)
    for image in images:
        concepts[image.label].add(image.concept)
    known: set[tuple[str | None, str]] = set()
    for label, of_class in concepts.items():
        order = sorted(of_class, key=lambda concept: hashlib.sha256(concept.encode()).digest())
        number = min(max(1, round(share * len(order))), len(order) - 1)
        known |= {(label, concept) for concept in order[:number]}
    return [replace(one, split="reference") if (one.label, one.concept) in known else one for one in images]


def _check_classes(made: EvaluationSet) -> None:
    if made.kind != "classification":
        return
    if len(made.classes) < 2:
        raise DataError(f"{made.name}: only one class ({', '.join(made.classes)}); a classification needs two or more")
    if not any(image.split == "query" for image in made.images):
        raise DataError(f"{made.name}: no picture is left to classify; check --from")


def _where_missing(recipe: Recipe, listed: Sequence[Listed], faults: Faults) -> str:
    """Where the pictures are, if all of them are missing where the table says, and they are in a usual folder."""
    missing = faults.found.get("missing", [])
    if len(missing) < len(listed) or not listed or recipe.images is not None:
        return ""
    table, wanted = recipe.sources[0], listed[0].path.name
    usual = (above / name for above in (table.parent, table.parent.parent) for name in _USUAL_FOLDERS)
    folder = next((folder for folder in usual if (folder / wanted).is_file()), None)
    return "" if folder is None else f"; {wanted} is in {folder}: give --images {folder}"


def main(params: Params, args: argparse.Namespace) -> None:
    """`align make_set`."""
    evaluation, ingest = params.section(PathsConfig).evaluation, params.section(IngestConfig)
    recipe = Recipe(
        name=args.name,
        sources=args.sources,
        columns=Columns(args.picture_column, args.caption_column, args.class_column, args.concept_column),
        images=args.images,
        reference=_reference(args.reference),
        classes=args.classes,
        templates=args.template or TEMPLATES,
        description=args.description,
        skip=args.skip,
        replace=args.replace,
    )
    if args.resize is not None and args.resize < 1:
        raise DataError(f"--resize {args.resize}: expected pixels of the shorter side, such as 512")
    quality = params.section(DownloadConfig).jpeg_quality
    limits = Limits(ingest.max_record_bytes, ingest.max_image_pixels, args.resize, quality)
    made, faults = make_set(recipe, limits, evaluation)
    for line in _summary(made, faults):
        say(f"make_set: {line}")
    say(f"make_set: wrote {evaluation / made.name}.tar and .json; filter keeps its pictures out, evaluate measures it")
    if not evaluation.is_absolute():
        say(f"make_set: for git: git add {evaluation / made.name}.tar {evaluation / made.name}.json")


def _reference(text: str | None) -> float | Path | None:
    try:
        share = float(text) if text is not None else None
    except ValueError:
        return Path(str(text))
    if share is not None and not 0 < share < 1:
        raise DataError(f"--reference {text}: expected a share between 0 and 1, or a folder or table")
    return share


def _summary(made: EvaluationSet, faults: Faults) -> Iterable[str]:
    yield from (f"left out: {len(names):,} {kind} ({some(names)})" for kind, names in faults.found.items())
    if faults.others:
        yield f"left out: {len(faults.others):,} file(s) that are no pictures by their names ({some(faults.others)})"
    if faults.joined:
        yield f"{len(faults.joined):,} picture(s) joined to one with the same bytes ({some(faults.joined)})"
    split = Counter(image.split for image in made.images)
    if made.kind == "retrieval":
        texts = {(image.concept, text) for image in made.images for text in image.texts}
        concepts = len({image.concept for image in made.images})
        yield f"{made.name}: {len(made.images):,} pictures, {len(texts):,} captions, {concepts:,} concepts (retrieval)"
        shared = sum(number > 1 for number in Counter(text for _, text in texts).values())
        if shared:
            yield f"{shared:,} caption(s) belong to several concepts, so no model is always right; see --concept"
        return
    yield (
        f"{made.name}: {len(made.classes):,} classes, {split['query']:,} pictures to classify, {split['reference']:,} "
        "references (classification)"
    )
    yield f"classes: {', '.join(made.classes[:20])}{', ...' if len(made.classes) > 20 else ''}"
    without = {str(one.label) for one in made.images} - {str(o.label) for o in made.images if o.split == "reference"}
    if without and split["reference"]:
        yield f"no reference in {', '.join(sorted(without))}: nearest neighbours are always wrong there"


@dataclass(frozen=True)
class Limits:
    """Bounds of one picture, and what is done to larger ones.

    Attributes:
        max_bytes: of its file.
        max_pixels: by its header.
        resize_px: pictures with a longer shorter side are shrunk to it; None: bytes as they are.
        jpeg_quality: of shrunk pictures.
    """

    max_bytes: int
    max_pixels: int
    resize_px: int | None
    jpeg_quality: int


@dataclass(frozen=True)
class _Looked:
    """A picture's bytes, or what is wrong with it."""

    data: bytes = b""
    fault: str | None = None
    why: str = ""


def read_pictures(
    listed: Sequence[tuple[Listed, Split]], limits: Limits, faults: Faults, spool: Spool
) -> list[EvaluationImage]:
    """The items without fault, in order; the others are added to `faults`. Equal pictures are joined to one.

    The pictures of the items go to `spool`, in the same order.
    """
    look = partial(_look, limits=limits)
    looked = in_threads(look, (one.path for one, _ in listed), os.cpu_count() or 1)
    first: dict[bytes, tuple[Listed, Split, int]] = {}  # by content; the position in `images`
    keys: set[str] = set()
    images: list[EvaluationImage] = []
    for (one, split), result in zip(listed, track(looked, what="make_set: pictures", total=len(listed)), strict=True):
        if result.fault is not None:
            faults.add(result.fault, f"{one.name}: {result.why}" if result.why else one.name)
            continue
        texts = tuple(one.texts) or ((one.label,) if one.label is not None else ())
        if not texts:
            continue  # at fault already
        other, other_split, position = first.setdefault(hashlib.sha256(result.data).digest(), (one, split, len(images)))
        if other is not one:
            if (other.label, other_split) == (one.label, split) and _is_one_concept(one, other):
                joined = dict.fromkeys((*images[position].texts, *texts))
                images[position] = replace(images[position], texts=tuple(joined))
                faults.joined.append(f"{one.name} = {other.name}")
            else:
                faults.add("equal to one of another class, concept or split", f"{one.name} = {other.name}")
            continue
        spool.add(result.data)
        images.append(EvaluationImage(_key(one.name, keys), one.concept, texts, one.label, None, split))
    return images


def _is_one_concept(one: Listed, other: Listed) -> bool:
    """Whether equal pictures may be one: nobody said that they show different things."""
    return one.concept == other.concept or (one.concept == one.name and other.concept == other.name)


def _look(path: Path, limits: Limits) -> _Looked:
    try:
        if not path.is_file():
            return _Looked(fault="missing")
        if path.stat().st_size > limits.max_bytes:
            return _Looked(fault=f"larger than {limits.max_bytes >> 20} MiB (ingest.max_record_bytes)")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return _Looked(fault="unreadable", why=str(getattr(error, "strerror", None) or error))
    try:
        header = read_header(data)
        if limits.resize_px is not None and min(header.width_px, header.height_px) > limits.resize_px:
            data = shrink(data, limits.resize_px, limits.jpeg_quality, limits.max_pixels)[0]
        else:
            decode(data, max_pixels=limits.max_pixels, hint_px=_HINT_PX)
    except PictureError as error:
        return _Looked(fault="undecodable", why=str(error))
    return _Looked(data)


def _key(name: str, taken: set[str]) -> str:
    """A key that is like the picture's name, ASCII, and not taken."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rpartition(".")[0] or name)[-_MAX_SLUG:]
    key, number = slug, 1
    while key in taken:
        number += 1
        key = f"{slug}_{number}"
    taken.add(key)
    return key
