"""Captioned data sets: COCO's `captions_*.json`, and Karpathy's splits (`dataset_coco.json`, `dataset_flickr30k.json`).

One row per caption; a picture without captions gives a row with an empty text. All splits are taken, because the
filter recognises pictures of evaluation sets by their content. A JSON file is loaded whole: COCO's largest has 100 MB
and takes about a gigabyte of memory.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.console import say
from align.errors import DataError
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.picture_files import OUTSIDE, read_picture
from align.ingest.sources.reading import Batches, is_file, is_local, is_within, joined, parent
from align.ingest.sources.texts import texts_of
from align.pairs.urls import canonical_or_as_is
from align.protocols.store import Files

_PREFIXES = ("captions_", "dataset")
#: Usual folders of the pictures, relative to the folder of the JSON file or the one above. `{split}` comes from
#: `captions_{split}.json`, or from Karpathy's `filepath`.
_FOLDERS = (
    "{split}",
    "images/{split}",
    "",
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "flickr8k-images",
)
#: Pictures to look for before the file counts as one without pictures.
_TRIES = 20


class _Picture(NamedTuple):
    """One picture: its file name, the folder that the data set states, its url, its captions as in the JSON."""

    name: str
    split: str
    url: str | None
    captions: list[Any]

    def folder(self, above: str, usual: str) -> str:
        """The folder of this picture, if the data set uses one of the usual folders."""
        return joined(above, usual.format(split=self.split)) or above


class Coco:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no captions."""
        listed = files.list(location, (".json",), config.paths_root)
        if len(listed) > 1:  # of a folder of annotations, only the files with captions
            found = [file for file in listed if file.rpartition("/")[2].startswith(_PREFIXES)]
            if 0 < len(found) < len(listed):
                say(
                    f"ingest: {location}: not read: {len(listed) - len(found):,} that are not captions_*, dataset*.json"
                )
            listed = found
        if not listed:
            raise DataError(f"{location}: no captions_*.json or dataset*.json here; set paths.archive to such a file")
        self.files = self.inputs = listed
        self._store = files
        self._max_bytes = config.max_record_bytes
        folders = {folder for file in listed for folder in (parent(file), parent(parent(file)))}
        self._folders = sorted(folders, key=len, reverse=True)
        self._within: dict[str, bool] = {}

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`.

        Raises:
            DataError: the file is not JSON of either kind.
        """
        pictures = self._pictures(file)
        usual = self._usual_folder(file, pictures)
        batches = Batches()
        for picture in pictures:
            name = "/".join(part for part in (picture.split, picture.name) if part)
            path = joined(picture.folder(*usual), picture.name) if usual is not None else None
            problem = None
            if not picture.name:
                problem = "a caption of no picture in the list"
                counts["rows_unreadable"] += len(picture.captions)
            elif path is None and not picture.url:
                problem = "no such file"
            elif path is not None and not self._holds(path):
                path, problem = None, OUTSIDE
            url = canonical_or_as_is(picture.url) if picture.url else name
            for caption in picture.captions or [""]:
                texts, unreadable = texts_of(caption)
                counts["rows"] += len(texts)
                counts["rows_unreadable"] += unreadable is not None and problem is None
                for text in texts:
                    text_source = "caption" if text.strip() else None
                    holder = None if unreadable else path
                    batches.add(Candidate(url, text, text_source, problem=problem or unreadable, file=holder))
                yield from batches.full()
        yield from batches.rest()

    def _pictures(self, file: str) -> list[_Picture]:
        try:
            with self._store.open(file) as stream:
                data = json.load(stream)
            if "annotations" in data:
                return _coco(data, _split(file))
            return [_karpathy(image) for image in data["images"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{file}: neither COCO's captions nor Karpathy's splits ({type(error).__name__}: {error}); "
                "expected images and annotations with captions, or images with sentences"
            ) from None

    def _usual_folder(self, file: str, pictures: list[_Picture]) -> tuple[str, str] | None:
        """The first usual folder with one of the first few pictures, as arguments of `_Picture.folder`; None: none."""
        for picture in pictures[:_TRIES]:
            for above in (parent(file), parent(parent(file))):
                for usual in _FOLDERS:
                    path = joined(picture.folder(above, usual), picture.name)
                    if path is not None and is_file(self._store, path):
                        return above, usual
        return None

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the whole file."""
        return read_picture(self._store, file, self._max_bytes, self._root(file))

    def _root(self, path: str) -> str:
        """The folder that a picture may not lead out of: that of the JSON file, or the one above, by its path."""
        return next(folder for folder in self._folders if path.startswith(f"{folder.rstrip('/')}/"))

    def _holds(self, path: str) -> bool:
        """Whether a picture is in its `_root`, symbolic links resolved; each folder is resolved once."""
        if not is_local(path) or Path(path).is_symlink():
            return is_within(self._root(path), path)
        folder = parent(path)
        if folder not in self._within:
            self._within[folder] = is_within(self._root(path), folder)
        return self._within[folder]


def _split(file: str) -> str:
    """`val2014` of `captions_val2014.json`."""
    return file.rpartition("/")[2].removesuffix(".json").partition("captions_")[2]


def _coco(data: dict[str, Any], split: str) -> list[_Picture]:
    captions: defaultdict[Any, list[Any]] = defaultdict(list)
    for annotation in data["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    pictures = [
        _Picture(
            str(image["file_name"]),
            split,
            next((url for key in ("coco_url", "flickr_url") if isinstance(url := image.get(key), str) and url), None),
            captions.pop(image["id"], []),
        )
        for image in data["images"]
    ]
    # captions of pictures that the file does not list
    return pictures + [_Picture("", split, None, texts) for texts in captions.values()]


def _karpathy(image: dict[str, Any]) -> _Picture:
    captions = [sentence["raw"] for sentence in image["sentences"]]
    return _Picture(str(image["filename"]), str(image.get("filepath") or ""), None, captions)
