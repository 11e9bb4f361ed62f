"""Reads captioned data sets: COCO's `captions_*.json`, and Karpathy's splits (`dataset_coco.json`, ...).

A JSON file is loaded whole: COCO's largest has 100 MB and takes about a gigabyte of memory.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from align.errors import DataError

#: Usual folders of the pictures, relative to the folder of the JSON file or the one above. `{split}` comes from
#: `captions_{split}.json`, or from Karpathy's `filepath`.
USUAL_FOLDERS = (
    "{split}", "images/{split}", "", "images", "Images", "flickr30k-images", "flickr30k_images", "flickr8k-images",
)  # fmt: skip


class CaptionedPicture(NamedTuple):
    """One picture of such a file.

    Attributes:
        name: of its file; empty for captions of a picture that the file does not list.
        folder: that the data set states, such as `val2014`; or empty.
        url: or None.
        captions: as in the JSON.
        split: `train`, `val`, `test`, `restval`, ... that the file states for it; None: it states none.
        number: COCO's id of the picture, by which other files name it; None: the file has none.
        numbers: the same for each caption.
    """

    name: str
    folder: str
    url: str | None
    captions: list[Any]
    split: str | None
    number: int | None = None
    numbers: tuple[int | None, ...] = ()


def read_captions(stream: IO[bytes], file: str) -> list[CaptionedPicture]:
    """The pictures of a JSON file of either kind; `file` is its name. Raises DataError if it is of neither kind."""
    try:
        data = json.load(stream)
        if "annotations" in data:
            return _coco(data, file)
        return [_karpathy(image) for image in data["images"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file}: neither COCO's captions nor Karpathy's splits ({type(error).__name__}: {error}); "
            "expected images and annotations with captions, or images with sentences"
        ) from None


def of_splits(pictures: Sequence[CaptionedPicture], splits: Sequence[str]) -> list[CaptionedPicture]:
    """The pictures of some splits, and those whose split the file does not state."""
    return [picture for picture in pictures if picture.split is None or picture.split in splits]


def require_splits(pictures: Sequence[CaptionedPicture], splits: Sequence[str], file: str, option: str) -> None:
    """Raises DataError if a file has pictures, and none of the splits, which an option chooses."""
    if pictures and not of_splits(pictures, splits):
        others = ", ".join(sorted({str(picture.split) for picture in pictures}))
        raise DataError(f"{file}: no picture of {', '.join(splits)}; it has {others}: correct {option}")


def _coco(data: dict[str, Any], file: str) -> list[CaptionedPicture]:
    folder = file.rpartition("/")[2].removesuffix(".json").partition("captions_")[2]
    stated = re.match(r"train|val|test", folder)
    split = stated[0] if stated else None
    captions: defaultdict[Any, list[Any]] = defaultdict(list)
    numbers: defaultdict[Any, list[int | None]] = defaultdict(list)
    for annotation in data["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
        numbers[annotation["image_id"]].append(_number(annotation.get("id")))
    pictures = [
        CaptionedPicture(
            str(image["file_name"]),
            folder,
            next((url for key in ("coco_url", "flickr_url") if isinstance(url := image.get(key), str) and url), None),
            captions.pop(image["id"], []),
            split,
            _number(image["id"]),
            tuple(numbers[image["id"]]),
        )
        for image in data["images"]
    ]
    # captions of pictures that the file does not list
    return pictures + [CaptionedPicture("", folder, None, texts, split) for texts in captions.values()]


def _karpathy(image: dict[str, Any]) -> CaptionedPicture:
    captions = [sentence["raw"] for sentence in image["sentences"]]
    split = image.get("split")
    return CaptionedPicture(
        str(image["filename"]),
        str(image.get("filepath") or ""),
        None,
        captions,
        None if split is None else str(split),
        _number(image.get("cocoid")),
        tuple(_number(sentence.get("sentid")) for sentence in image["sentences"]),
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None
