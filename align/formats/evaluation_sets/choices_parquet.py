"""SugarCrepe, Winoground and ARO as Hugging Face's hub has them: parquet files of pictures and captions.

A row has the columns `caption_0`, `caption_1`, `image_0` and `image_1` (Winoground); or one picture with `caption` and
`negative_caption` (SugarCrepe), `true_caption` and `false_caption` (ARO's relations and attributes), or
`correct_caption` and `hard_text_1` ... `hard_text_4` (ARO's orders). The hub's copies name no category or relation and
have the boxes cut out already, so they have the share over all rows and no mean over groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import Choice, Choices, EvaluationImage, EvaluationSet
from align.formats.evaluation_sets.files import made
from align.formats.evaluation_sets.hub_parquet import RowPictures, files_of, readable
from align.interfaces.store import Files

_Protocol = Literal["sugarcrepe", "winoground", "relation", "attribution", "order"]
#: Format -> the columns of texts that it may have, and the protocol.
_LAYOUTS: dict[str, list[tuple[tuple[str, ...], _Protocol]]] = {
    "winoground": [(("caption_0", "caption_1"), "winoground")],
    "sugarcrepe": [(("caption", "negative_caption"), "sugarcrepe")],
    "aro": [
        (("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4"), "order"),
        (("true_caption", "false_caption"), "relation"),
    ],
}
_PAIR = ("image_0", "image_1")


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError where a file lacks the columns; see `files.made`."""
    images: list[EvaluationImage] = []
    places: list[tuple[str, str, int]] = []
    rows: list[Choice] = []
    unusable: dict[str, str] = {}
    protocol: _Protocol | None = None
    for uri in files_of(wanted, wanted.split, files):
        pictures, texts, of_file = _columns(wanted, uri, files)
        protocol = protocol or of_file
        if of_file != protocol:
            raise DataError(f"{uri}: its columns are those of {of_file}, but another file's those of {protocol}")
        name = uri.rpartition("/")[2].removesuffix(".parquet")
        usable = []
        for number, captions in enumerate(_captions(uri, texts, files)):
            if captions is None:
                unusable[f"{name}/{number:06}"] = f"no {' and '.join(texts)}"
            else:
                usable.append((number, captions))
        first = len(images)
        for column in pictures:  # the pictures of a column lie together: they are read in this order
            for number, _ in usable:
                key = f"{name}/{number:06}" + (f"/{column}" if len(pictures) > 1 else "")
                images.append(EvaluationImage(key, key, (), None, None, "query"))
                places.append((uri, column, number))
        for index, (number, captions) in enumerate(usable):
            positions = tuple(first + part * len(usable) + index for part in range(len(pictures)))
            rows.append(Choice(f"{name}/{number:06}", positions, captions, ""))
    assert protocol is not None  # files_of found a file
    choices = Choices(protocol, tuple(rows))
    return made(wanted, images, RowPictures(files, places), choices=choices, unusable=unusable)


def _columns(wanted: SuiteSet, uri: str, files: Files) -> tuple[Sequence[str], tuple[str, ...], _Protocol]:
    """Columns of pictures, columns of texts, and the protocol."""
    with readable(uri), files.open(uri) as stream, pq.ParquetFile(stream) as file:
        schema = file.schema_arrow
    images = [
        field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    for texts, protocol in _LAYOUTS[wanted.format]:
        pictures = [name for name in images if name in _PAIR] if protocol == "winoground" else images[:1]
        if set(texts) <= set(schema.names) and len(pictures) == (2 if protocol == "winoground" else 1):
            return sorted(pictures), texts, protocol
    raise DataError(
        f"{uri}: no columns of pictures and captions as {wanted.format} has them; it has "
        f"{', '.join(schema.names[:12]) or 'none'}"
    )


def _captions(uri: str, columns: Sequence[str], files: Files) -> Iterator[tuple[str, ...] | None]:
    """The texts of each row; None: one is missing. Pictures are not read."""
    with readable(uri), files.open(uri) as stream, pq.ParquetFile(stream) as file:
        for batch in file.iter_batches(1024, columns=list(columns), use_threads=False):
            parts: list[list[Any]] = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in columns]
            for values in zip(*parts, strict=True):
                yield values if all(isinstance(one, str) and one.strip() for one in values) else None
