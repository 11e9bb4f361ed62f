"""What a source says before any picture is looked at: pairs, and where in an archive an address was answered.

Every source (`align.ingest.sources`) reads its files into batches of these two tables, each file by itself, so that
thousands of files are read side by side.
"""

from __future__ import annotations

import pyarrow as pa

#: One row a pair, in the order of the file.
#:   url           canonical; for pictures on disk or in a tar a name that is unique in the source
#:   caption       as found (entities decoded); never null
#:   text_source   alt, figcaption, title, aria-label, or the column or file that the text is from
#:   page_url      null where the source does not say
#:   problem       why no picture can be had, whatever is tried (`invalid URL`); else null
#:   file, offset  where the bytes lie, in terms of the source's `read`; null: asked for by url
#:   inline        the bytes themselves (a data: URI); else null
CANDIDATES = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("text_source", pa.string()),
        ("page_url", pa.string()),
        ("problem", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("inline", pa.binary()),
    ]
)

#: One row a response of a web archive, pages too.
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
