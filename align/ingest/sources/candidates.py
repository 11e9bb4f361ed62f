"""The two tables that a source is read into: its pairs, and the responses that a web archive holds.

No picture is examined for them. Every source (`align.ingest.sources`) reads each file separately into batches of these
tables, so that thousands of files can be read in parallel.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from align.pairs.text import MAX_CHARACTERS
from align.pairs.urls import address_of


class Candidate(NamedTuple):
    """One pair: a row of CANDIDATES, in the order of the file."""

    url: str  # canonical; for pictures on disk, in a tar or a table, a name that is unique in the source
    text: str  # as the source has it, entities decoded
    text_source: str | None  # alt, figcaption, title, aria-label, or the column or file that the text is from
    page_url: str | None = None
    problem: str | None = None  # why there can be no picture (such as `invalid URL`)
    file: str | None = None  # with the bytes, as the source's `read` takes it; None: they are fetched by the url
    offset: int | None = None
    inline: bytes | None = None  # the bytes themselves (of a data: URI)
    status: str | None = None  # as in data/raw, of a row with a problem, where the source says it; None: no download
    original_width: int | None = None  # in pixels, where the source shrank the picture and says so
    original_height: int | None = None
    stated_sha256: str | None = None  # of the bytes before the source changed them, where it says so
    licence: str | None = None  # what its page says, see `rights.Rights`
    reservation: str | None = None
    together: str | None = None  # equal for pairs whose pictures are read together: they are in one shard


#: Counts of strings that reach the limit: name -> column.
_CUT = {"texts_cut": "text", "page_urls_cut": "page_url"}
#: Characters of a text's source, and of the reason why there can be no picture.
_MAX_NOTE_CHARACTERS = 1000


def bounded(row: Candidate) -> Candidate:
    """The row with no string longer than we store.

    Texts, page URLs and notes are cut. A pair whose own address is too long has no picture.
    """
    strings = (row.url, row.text, row.page_url, row.text_source, row.problem)
    if max(map(len, filter(None, strings)), default=0) <= _MAX_NOTE_CHARACTERS:
        return row
    url, problem, _ = address_of(row.url)
    return row._replace(
        url=url,
        text=row.text[:MAX_CHARACTERS],
        text_source=row.text_source and row.text_source[:_MAX_NOTE_CHARACTERS],
        page_url=row.page_url and row.page_url[:MAX_CHARACTERS],
        problem=(row.problem or problem or "")[:_MAX_NOTE_CHARACTERS] or None,
    )


def num_cut(candidates: pa.RecordBatch) -> dict[str, int]:
    """How many texts and page URLs reach the limit; nearly all of them were cut."""
    lengths = {name: pc.utf8_length(candidates[column]) for name, column in _CUT.items()}
    numbers = {name: pc.sum(pc.greater_equal(length, MAX_CHARACTERS)).as_py() or 0 for name, length in lengths.items()}
    return {name: number for name, number in numbers.items() if number}


#: Fields of a Candidate that are no text.
_NO_STRINGS = {"offset": pa.int64(), "inline": pa.binary(), "original_width": pa.int32(), "original_height": pa.int32()}
CANDIDATES = pa.schema([(name, _NO_STRINGS.get(name, pa.string())) for name in Candidate._fields])

#: One row per response of a web archive, pages included.
RESPONSES = pa.schema(
    [
        ("url", pa.string()),  # canonical
        ("status", pa.int32()),  # of HTTP, 0 if the record has none
        ("location", pa.string()),  # canonical target of a redirect; else null
        ("file", pa.string()),  # and offset: of the record, for `read`
        ("offset", pa.int64()),
        ("reservation", pa.string()),  # of its headers, see `rights.Rights`
    ]
)
