"""Captioned data sets: COCO's `captions_*.json`, and Karpathy's splits (`dataset_coco.json`, `dataset_flickr30k.json`).

One row a caption; a picture without captions is a row with an empty text. All splits are taken: the filter finds the
pictures of evaluation sets by their content. A JSON file is loaded whole (COCO's largest has 100 MB and takes about a
gigabyte then); there are a handful of them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.sources.reading import Batches, is_file, joined, parent
from align.pairs.urls import canonical_or_as_is
from align.protocols.store import Files

_PREFIXES = ("captions_", "dataset")
#: Folders of pictures beside the JSON file or its folder; `{split}` is that of `captions_{split}.json`, or `filepath`.
_PLACES = (
    "{split}",
    "images/{split}",
    "",
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "flickr8k-images",
)
#: Pictures that are looked for before a file counts as one without pictures.
_TRIES = 20


class _Picture(NamedTuple):
    """One picture of a data set: its file's name, the folder that the data set names, where it was, its captions."""

    name: str
    split: str
    url: str | None
    captions: list[str]

    def place(self, above: str, place: str) -> str:
        """The folder that a usual place means for this picture."""
        return joined(above, place.format(split=self.split)) or above


class Coco:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when no captions are at the location."""
        found = files.list(location, (".json",))
        if len(found) > 1:  # of a folder of annotations only those with captions
            found = [file for file in found if file.rpartition("/")[2].startswith(_PREFIXES)]
        if not found:
            raise DataError(f"{location}: no captions_*.json or dataset*.json here; set paths.archive to such a file")
        self.files = self.inputs = found
        self._store = files

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`.

        Raises:
            DataError: the file is no JSON of either kind.
        """
        pictures = self._pictures(file)
        place = self._place(file, pictures)
        batches = Batches()
        for picture in pictures:
            name = "/".join(part for part in (picture.split, picture.name) if part)
            path = joined(picture.place(*place), picture.name) if place is not None else None
            problem = None
            if not picture.name:
                problem = "a caption of no picture in the list"
                counts["rows_unreadable"] += len(picture.captions)
            elif path is None and not picture.url:
                problem = "no such file"
            url = canonical_or_as_is(picture.url) if picture.url else name
            for caption in picture.captions or [""]:
                counts["rows"] += 1
                batches.candidate(url, caption, "caption" if caption.strip() else None, problem=problem, file=path)
            yield from batches.full()
        yield from batches.rest()

    def _pictures(self, file: str) -> list[_Picture]:
        try:
            with self._store.open(file) as stream:
                data = json.load(stream)
            if "annotations" in data:
                return _coco(data, _split(file))
            return [_karpathy(image) for image in data["images"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}: neither COCO's captions nor Karpathy's splits ({type(error).__name__}: {error}); "
                "expected images and annotations with captions, or images with sentences"
            ) from None

    def _place(self, file: str, pictures: list[_Picture]) -> tuple[str, str] | None:
        """Where the pictures are: the first usual place that holds one of the first few; None where none does."""
        for picture in pictures[:_TRIES]:
            for above in (parent(file), parent(parent(file))):
                for place in _PLACES:
                    path = joined(picture.place(above, place), picture.name)
                    if path is not None and is_file(self._store, path):
                        return above, place
        return None

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the whole file."""
        if not is_file(self._store, file):
            return None
        with self._store.open(file) as stream:
            return stream.read()


def _split(file: str) -> str:
    """`val2014` of `captions_val2014.json`."""
    return file.rpartition("/")[2].removesuffix(".json").partition("captions_")[2]


def _coco(data: dict[str, Any], split: str) -> list[_Picture]:
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    for annotation in data["annotations"]:
        captions[annotation["image_id"]].append(str(annotation["caption"]))
    pictures = [
        _Picture(
            str(image["file_name"]),
            split,
            image.get("coco_url") or image.get("flickr_url"),
            captions.pop(image["id"], []),
        )
        for image in data["images"]
    ]
    # captions of pictures that the file does not list
    return pictures + [_Picture("", split, None, texts) for texts in captions.values()]


def _karpathy(image: dict[str, Any]) -> _Picture:
    texts = [str(sentence["raw"]) for sentence in image["sentences"]]
    return _Picture(str(image["filename"]), str(image.get("filepath") or ""), None, texts)
