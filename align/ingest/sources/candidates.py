"""The two tables that a source is read into: its pairs, and the responses that a web archive holds.

No picture is examined for them. Every source (`align.ingest.sources`) reads each file separately into batches of these
tables, so that thousands of files can be read in parallel.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class Candidate(NamedTuple):
    """One pair: a row of CANDIDATES, in the order of the file.

    Attributes:
        url: canonical; for pictures on disk or in a tar, a name that is unique in the source.
        text: as the source has it, entities decoded.
        text_source: alt, figcaption, title, aria-label, or the column or file that the text is from.
        page_url: None where the source does not name the page.
        problem: why there can be no picture (such as `invalid URL`); else None.
        file: that holds the bytes, as the source's `read` takes it; None where they are to be fetched by the url.
        offset: in the file.
        inline: the bytes themselves (of a data: URI); else None.
    """

    url: str
    text: str
    text_source: str | None
    page_url: str | None = None
    problem: str | None = None
    file: str | None = None
    offset: int | None = None
    inline: bytes | None = None


CANDIDATES = pa.schema(
    [
        ("url", pa.string()),
        ("text", pa.string()),
        ("text_source", pa.string()),
        ("page_url", pa.string()),
        ("problem", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("inline", pa.binary()),
    ]
)

#: One row per response of a web archive, pages included.
#:   url           canonical
#:   status        HTTP status, 0 where the record has none
#:   location      canonical target of a redirect; else null
#:   file, offset  of the record, for `read`
RESPONSES = pa.schema(
    [
        ("url", pa.string()),
        ("status", pa.int32()),
        ("location", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
    ]
)
