"""Captioned data sets: COCO's `captions_*.json`, and Karpathy's splits (`dataset_coco.json`, `dataset_flickr30k.json`).

One row per caption; a picture without captions gives a row with an empty text. Only pictures of `ingest.splits` are
taken: the others are what published figures are measured on. COCO's own files state their split in their names, and
val2014 holds Karpathy's test split. Pictures without a stated split are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.display.console import say
from align.errors import DataError
from align.formats.captions_json import USUAL_FOLDERS, CaptionedPicture, of_splits, read_captions, require_splits
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.picture_files import OUTSIDE, read_picture
from align.ingest.sources.reading import Batches, Within, is_file, joined, parent
from align.ingest.sources.texts import texts_of
from align.interfaces.store import Files
from align.pairs.urls import canonical_or_as_is

_PREFIXES = ("captions_", "dataset")
#: Pictures to look for before the file counts as one without pictures.
_TRIES = 20


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
        self._splits = config.splits
        folders = {folder for file in listed for folder in (parent(file), parent(parent(file)))}
        self._folders = sorted(folders, key=len, reverse=True)
        self._within = {folder: Within(folder) for folder in self._folders}

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`; also counts rows_of_other_splits. A file without a picture of `ingest.splits` is an error."""
        pictures = self._pictures(file, counts)
        usual = self._usual_folder(file, pictures)
        batches = Batches()
        for picture in pictures:
            name = "/".join(part for part in (picture.folder, picture.name) if part)
            path = joined(_folder(picture, *usual), picture.name) if usual is not None else None
            problem = None
            if not picture.name:
                problem = "a caption of no picture in the list"
                counts["rows_unreadable"] += len(picture.captions)
            elif path is None and not picture.url:
                problem = "no such file"
            elif path is not None and not self._within[self._root(path)].holds(path):
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

    def _pictures(self, file: str, counts: Counter[str]) -> list[CaptionedPicture]:
        with self._store.open(file) as stream:
            pictures = read_captions(stream, file)
        if self._splits is None:
            return pictures
        if len(self.files) == 1:  # one of several files that is of another split is left out
            require_splits(pictures, self._splits, file, "ingest.splits")
        chosen = of_splits(pictures, self._splits)
        taken = sum(len(picture.captions) for picture in chosen)
        if others := sum(len(picture.captions) for picture in pictures) - taken:
            counts["rows_of_other_splits"] += others
            say(f"ingest: {file}: {others:,} captions of other splits than {', '.join(self._splits)} are not taken")
        return chosen

    def _usual_folder(self, file: str, pictures: list[CaptionedPicture]) -> tuple[str, str] | None:
        """The first usual folder with one of the first few pictures, as arguments of `_folder`; None: none."""
        for picture in pictures[:_TRIES]:
            for above in (parent(file), parent(parent(file))):
                for usual in USUAL_FOLDERS:
                    path = joined(_folder(picture, above, usual), picture.name)
                    if path is not None and is_file(self._store, path):
                        return above, usual
        return None

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the whole file."""
        return read_picture(self._store, file, self._max_bytes, self._root(file))

    def _root(self, path: str) -> str:
        """The folder that must contain the picture: that of the JSON file, or the one above, by its path."""
        return next(folder for folder in self._folders if path.startswith(f"{folder.rstrip('/')}/"))


def _folder(picture: CaptionedPicture, above: str, usual: str) -> str:
    """The folder of a picture, if the data set uses one of the usual folders."""
    return joined(above, usual.format(split=picture.folder)) or above
