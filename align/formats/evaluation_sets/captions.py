"""Formats `coco`, `karpathy`, `retrieval_txt` and `multi30k`: files of captions, and a folder of pictures beside it.

Each caption is an item, right for its own picture only; repeated captions stay items. `retrieval_txt` has lines
`NAME.jpg,CAPTION`, perhaps after a line of headings, as flickr30k_test_karpathy.txt has them. `multi30k` has a file of
names, one picture per line, and files with one caption of each in the same order, as test_2016_flickr.txt and
test_2016_flickr.de.gz; each language is a set of its own.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.captions_json import USUAL_FOLDERS, CaptionedPicture, of_splits, read_captions, require_splits
from align.formats.evaluation_set import EvaluationImage, EvaluationSet
from align.formats.evaluation_sets.files import FilePictures, bytes_of, exists, joined, leads_out, lines_of, made
from align.interfaces.store import Files

#: Where the name of a picture ends in a line; captions have commas, too.
_LINE = re.compile(r"(?P<name>.+?\.(?:jpe?g|png|webp|gif|bmp))\s*,(?P<caption>.*)", re.IGNORECASE)
#: Bytes of a file of captions of multi30k, packed or not: it has 80 KB.
_MOST_BYTES = 64 << 20
#: Pictures to look for in each usual folder.
_TRIES = 5


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError if it is not such a file, or has no picture of the split; see `files.made`."""
    unusable: dict[str, str] = {}
    parse = {"retrieval_txt": _lines, "multi30k": _beside}.get(wanted.format, _json)
    rows = list(parse(wanted, files, unusable))
    folder = _folder(wanted, rows, files)
    images, uris = [], []
    for row in rows:
        if not row.captions:
            unusable[row.name] = "without a caption"
            continue
        if leads_out(row.name):
            unusable[row.name] = "its name leads out of the folder of pictures"
            continue
        key = f"{row.folder}/{row.name}" if row.folder else row.name
        numbers = tuple(number for number in row.numbers if number is not None)
        numbers = numbers if len(numbers) == len(row.captions) else ()
        images.append(EvaluationImage(key, key, tuple(row.captions), None, "query", row.number, numbers))
        uris.append(joined(folder.format(split=row.folder), row.name))
    return made(wanted, images, FilePictures(files, uris, [folder.partition("{split}")[0] or "."]), unusable=unusable)


def _json(wanted: SuiteSet, files: Files, unusable: dict[str, str]) -> Iterator[CaptionedPicture]:
    try:
        with files.open(wanted.path) as stream:
            pictures = read_captions(stream, wanted.path)
    except OSError as error:
        raise DataError(f"{wanted.path}: the file of captions cannot be read: {error.strerror or error}") from None
    if wanted.format == "karpathy":
        require_splits(pictures, [wanted.split], wanted.path, f"`split` of the set {wanted.name}")
        pictures = of_splits(pictures, [wanted.split])
    for picture in pictures:
        if not picture.name:
            unusable[f"caption {str(picture.captions[0])[:60]!r}"] = "of no picture in the list"
            continue
        usable = [row for row, text in enumerate(picture.captions) if isinstance(text, str) and text.strip()]
        texts = [picture.captions[row] for row in usable]
        numbers = tuple(picture.numbers[row] for row in usable if row < len(picture.numbers))
        if len(texts) < len(picture.captions):
            unusable[f"a caption of {picture.name}"] = "no text"
        yield picture._replace(captions=texts, numbers=numbers)


def _lines(wanted: SuiteSet, files: Files, unusable: dict[str, str]) -> Iterator[CaptionedPicture]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(files, wanted.path, "the file of captions"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            if number > 1:  # the first may be headings
                unusable[f"line {number}"] = "no NAME.jpg,CAPTION"
        elif match["caption"].strip():
            captions.setdefault(match["name"].strip(), []).append(match["caption"].strip())
        else:
            unusable[f"line {number}"] = "an empty caption"
    return (CaptionedPicture(name, "", None, texts, None) for name, texts in captions.items())


def _beside(wanted: SuiteSet, files: Files, unusable: dict[str, str]) -> Iterator[CaptionedPicture]:
    names = lines_of(files, wanted.path, "the list of pictures")
    columns = []
    for uri in wanted.captions:
        column = _unpacked(files, uri).removesuffix("\n").split("\n")  # not splitlines: captions have other breaks
        if len(column) != len(names):
            raise DataError(f"{uri}: {len(column):,} captions, but {wanted.path} lists {len(names):,} pictures")
        columns.append(column)
    for number, captions in enumerate(zip(*columns, strict=True), 1):
        for uri, caption in zip(wanted.captions, captions, strict=True):
            if not caption.strip():
                unusable[f"line {number} of {uri.rpartition('/')[2]}"] = "an empty caption"
        texts = [caption.strip() for caption in captions if caption.strip()]
        yield CaptionedPicture(names[number - 1], "", None, texts, None)


def _unpacked(files: Files, uri: str) -> str:
    """The text of a file of captions, which may be packed by gzip."""
    data = bytes_of(files, uri, "the captions", _MOST_BYTES)
    try:
        if uri.endswith(".gz"):
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise DataError(f"{uri}: the captions: more than {_MOST_BYTES >> 20} MiB")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{uri}: the captions: not readable as text ({error}); fetch it again") from None


def _folder(wanted: SuiteSet, rows: list[CaptionedPicture], files: Files) -> str:
    """The folder of the pictures; it may have `{split}` in it. Raises DataError if none of the usual folders has one of
    the first pictures.
    """
    if wanted.images is not None:
        return wanted.images.replace("{", "{{").replace("}", "}}")
    here = wanted.path.rpartition("/")[0] or "."
    above = here.rpartition("/")[0] or "."
    tried = []
    for base in (here, above, f"{here}/.."):
        for usual in USUAL_FOLDERS:
            folder = joined(base.replace("{", "{{").replace("}", "}}"), *([usual] if usual else []))
            tried.append(folder)
            if any(exists(joined(folder.format(split=row.folder), row.name), files) for row in rows[:_TRIES]):
                return folder
    raise DataError(
        f"evaluation set {wanted.name}: none of the first pictures of {wanted.path} ({rows[0].name if rows else 'none'}"
        ", ...) is in one of the usual folders beside it; is it a file for other images? Say where they are: `images`"
    )
