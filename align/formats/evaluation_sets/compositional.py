"""Formats `sugarcrepe`, `winoground` and `aro`: sets of rows that ask which text belongs to which picture.

As their authors publish them:

    sugarcrepe    PATH/add_att.json and six more, {"0": {"filename", "caption", "negative_caption"}, ...}, over the
                  pictures of COCO's val2017
    winoground    PATH/examples.jsonl, {"id", "image_0", "image_1", "caption_0", "caption_1", "tag", ...} a line, and
                  PATH/images/NAME.png
    aro           PATH is visual_genome_relation.json or visual_genome_attribution.json, a list of {"image_path",
                  "bbox_x", "bbox_y", "bbox_w", "bbox_h", "true_caption", "false_caption"} with "relation_name" or
                  "attributes"; the model is shown this part of the picture

Where PATH is, or holds, parquet files, they are read as the hub has these sets (`choices_parquet`); ARO's orders of
COCO and Flickr30K are published in no other way: its own code shuffles the words each time it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import Box, Choice, Choices, EvaluationImage, EvaluationSet
from align.formats.evaluation_sets.files import FilePictures, exists, joined, lines_of, made, text_of
from align.interfaces.store import Files

#: Categories of SugarCrepe, in the order of its paper's table.
CATEGORIES = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
#: Of a file: ARO's have about 20 MB.
_MOST_BYTES = 256 << 20
#: Sides of a part of a picture, and how far it may begin outside of it: far more than Visual Genome has.
_MOST_PX = 8192
#: Pictures to look for in each usual folder.
_TRIES = 5
_EXAMPLES = "examples.jsonl"


@dataclass(frozen=True)
class _Row:
    """A row: the names of its pictures, what is shown of them, its texts as `Choice` has them, and its group."""

    key: str
    names: tuple[str, ...]
    box: Box | None
    texts: tuple[str, ...]
    group: str


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError where a file is missing, or no such file; see `files.made`."""
    if _is_parquet(wanted, files):
        from align.formats.evaluation_sets.choices_parquet import read as of_hub

        return of_hub(wanted, files)
    unusable: dict[str, str] = {}
    protocol: Literal["sugarcrepe", "winoground", "relation", "attribution"]
    if wanted.format == "sugarcrepe":
        protocol, usual = "sugarcrepe", ["val2017", "../val2017", "images/val2017", "images", ""]
        rows = list(_sugarcrepe(wanted, files, unusable))
        here = wanted.path
    elif wanted.format == "winoground":
        protocol, usual = "winoground", ["images", ""]
        rows = list(_winoground(wanted, files, unusable))
        here = wanted.path
    else:
        protocol, found = _aro(wanted, files, unusable)
        rows, usual, here = list(found), ["images", "../images", ""], wanted.path.rpartition("/")[0] or "."
    folder = _folder(wanted, here, usual, rows, files)
    places: dict[tuple[str, Box | None], int] = {}
    choices = []
    for row in rows:
        positions = tuple(places.setdefault((name, row.box), len(places)) for name in row.names)
        choices.append(Choice(row.key, positions, row.texts, row.group))
    images = [_image(name, box) for name, box in places]
    pictures = FilePictures(files, [joined(folder, name) for name, _ in places], [folder])
    return made(wanted, images, pictures, choices=Choices(protocol, tuple(choices)), unusable=unusable)


def _image(name: str, box: Box | None) -> EvaluationImage:
    """An item; the parts of one picture are of one concept, as they are no independent observations."""
    key = name if box is None else f"{name}#{','.join(map(str, box))}"
    return EvaluationImage(key, name, (), None, None, "query", box=box)


def _is_parquet(wanted: SuiteSet, files: Files) -> bool:
    """Whether PATH is a parquet file, or a folder with such files and none of the authors'."""
    if wanted.path.endswith((".json", ".jsonl")):
        return False
    if wanted.path.endswith(".parquet"):
        return True
    try:
        return bool(files.list(wanted.path.rstrip("/") + "/", (".parquet",)))
    except DataError:
        return False


def _sugarcrepe(wanted: SuiteSet, files: Files, unusable: dict[str, str]) -> Iterator[_Row]:
    for category in CATEGORIES:
        uri = joined(wanted.path, f"{category}.json")
        rows = _json(files, uri)
        if not isinstance(rows, dict):
            raise DataError(f'{uri}: no object of rows; expected {{"0": {{"filename", "caption", ...}}, ...}}')
        for number, row in rows.items():
            key = f"{category}/{number}"
            parts = _texts(row, ("filename", "caption", "negative_caption"), key, unusable)
            if parts is not None and _is_below(parts[0], key, unusable):
                yield _Row(key, parts[:1], None, parts[1:], category)


def _winoground(wanted: SuiteSet, files: Files, unusable: dict[str, str]) -> Iterator[_Row]:
    uri = joined(wanted.path, _EXAMPLES)
    for number, line in enumerate(lines_of(files, uri, "the examples")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            unusable[f"line {number + 1}"] = "no JSON"
            continue
        key = f"example {row['id'] if isinstance(row, dict) and isinstance(row.get('id'), int) else number}"
        parts = _texts(row, ("image_0", "image_1", "caption_0", "caption_1"), key, unusable)
        if parts is not None and all(_is_below(name, key, unusable) for name in parts[:2]):
            names = tuple(name if name.lower().endswith((".png", ".jpg")) else f"{name}.png" for name in parts[:2])
            tag = row.get("collapsed_tag")
            yield _Row(key, names, None, parts[2:], tag if isinstance(tag, str) else "")


def _aro(
    wanted: SuiteSet, files: Files, unusable: dict[str, str]
) -> tuple[Literal["relation", "attribution"], Iterator[_Row]]:
    rows = _json(files, wanted.path)
    first = rows[0] if isinstance(rows, list) and rows else None
    protocol: Literal["relation", "attribution"]
    if isinstance(first, dict) and "relation_name" in first:
        protocol = "relation"
    elif isinstance(first, dict) and "attributes" in first:
        protocol = "attribution"
    else:
        raise DataError(
            f"{wanted.path}: no rows with relation_name or attributes; expected visual_genome_relation.json or "
            "visual_genome_attribution.json"
        )

    def found() -> Iterator[_Row]:
        for number, row in enumerate(rows):
            key = f"row {number}"
            parts = _texts(row, ("image_path", "true_caption", "false_caption"), key, unusable)
            if parts is None or not _is_below(parts[0], key, unusable):
                continue
            group, box = _group(row, protocol), _box(row)
            if group is None or box is None:
                unusable[key] = "no box of whole pixels within reason" if box is None else f"no {protocol}"
                continue
            yield _Row(key, parts[:1], box, parts[1:], group)

    return protocol, found()


def _group(row: Mapping[str, Any], protocol: str) -> str | None:
    """The relation, or both attributes; None: the row has none."""
    if protocol == "relation":
        relation = row.get("relation_name")
        return relation if isinstance(relation, str) and relation else None
    pair = row.get("attributes")
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
        return None
    return "_".join(pair)


def _box(row: Mapping[str, Any]) -> Box | None:
    """The part of the picture; None: the row has no such part."""
    values: list[Any] = [row.get(f"bbox_{name}") for name in ("x", "y", "w", "h")]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return None
    left, top, width, height = values
    if not (-_MOST_PX <= left <= 8 * _MOST_PX and -_MOST_PX <= top <= 8 * _MOST_PX):
        return None
    return (left, top, left + width, top + height) if 0 < width <= _MOST_PX and 0 < height <= _MOST_PX else None


def _json(files: Files, uri: str) -> Any:
    try:
        return json.loads(text_of(files, uri, "the rows", _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{uri}: no JSON: {' '.join(str(error).split())[:200]}; fetch it again") from None


def _texts(row: Any, names: Sequence[str], key: str, unusable: dict[str, str]) -> tuple[str, ...] | None:
    """The values of a row, all of them texts; None: it is unusable, and added to those."""
    values: list[Any] = [row.get(name) for name in names] if isinstance(row, dict) else [None] * len(names)
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            unusable[key] = f"no {name}"
            return None
    return tuple(values)


def _is_below(name: str, key: str, unusable: dict[str, str]) -> bool:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        unusable[key] = "the name of its picture leads out of the folder of pictures"
        return False
    return True


def _folder(wanted: SuiteSet, here: str, usual: Sequence[str], rows: Sequence[_Row], files: Files) -> str:
    """The folder of the pictures. Raises DataError where none of the usual ones has one of the first pictures."""
    if wanted.images is not None:
        return wanted.images
    names = [name for row in rows[:_TRIES] for name in row.names]
    for folder in (joined(here, *([name] if name else [])) for name in usual):
        if any(exists(joined(folder, name), files) for name in names):
            return folder
    if not rows:
        return here
    raise DataError(
        f"evaluation set {wanted.name}: none of the first pictures ({names[0]}, ...) is in one of the usual folders "
        f"({', '.join(joined(here, name) if name else here for name in usual)}); say where they are: `images`"
    )
