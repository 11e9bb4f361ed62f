"""Where in the source a pair was found: the file, and the record of its page or its place among the file's pairs.

data/raw keeps the page's address and not the record, so the source is read again, as ingest reads it. That is done
where all of its files are on this machine and small; a larger one is read on request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.paths import PathsConfig
from align.errors import AlignError
from align.ingest.sources import Source, open_source
from align.lineage.versions.raw_pairs import RawRow
from align.pairs.urls import canonical_or_as_is
from align.services.files.files import StoreFiles

#: A source up to this size is read without a request: it takes a second or two.
SMALL_BYTES = 128 * 2**20

#: Facts of a pair's page: label -> value.
Place = dict[str, str]


class SourcePlaces:
    """Looks for pairs in the source that the checkout's params.yaml names.

    Args:
        params: all values.
        asked: whether a large source is read, too.

    Attributes:
        problem: why nothing was looked for, and what to do; empty: it was.
    """

    def __init__(self, params: Params, *, asked: bool) -> None:
        self._params, self._asked = params, asked
        self.problem = ""

    def find(self, rows: Sequence[RawRow], made_of: str | None) -> dict[str, Place]:
        """Key -> where the source has the pair, for those that were found.

        Args:
            rows: of data/raw.
            made_of: the source that data/raw was made of; None: unknown.
        """
        archive = self._params.section(PathsConfig).archive
        if made_of is not None and made_of != archive:
            self.problem = f"{archive} was not read for the record: data/raw was made of {made_of}"
            return {}
        files = StoreFiles(self._params.section(StoreConfig), self._params.section(DownloadConfig))
        try:
            source = open_source(self._params.section(IngestConfig), archive, files)
            size = _size(source)
            if not self._asked and (size is None or size > SMALL_BYTES):
                what = "it is not on this machine" if size is None else f"it has {size / 1e6:,.0f} MB"
                self.problem = f"{archive} was not read for the record: {what}; `--in-source` reads all of it"
                return {}
            return places_in(source, rows)
        except AlignError as error:
            self.problem = f"the record was not found: {error}"
            return {}


def places_in(source: Source, rows: Sequence[RawRow]) -> dict[str, Place]:
    """Reads the source until all rows are found, or to its end.

    Raises:
        DataError: a file is damaged or of another kind.
        ServiceError: a file cannot be fetched.
    """
    found: dict[str, Place] = {}
    pages = {canonical_or_as_is(row["page_url"]): row["page_url"] for row in rows if row["page_url"]}
    records: dict[str, Place] = {}
    for file in source.files:
        number = 0
        for batch in source.scan(file, Counter()):
            if "text" in batch.schema.names:
                _add_pairs(batch, number, file, rows, found)
                number += batch.num_rows
            elif pages:
                _add_records(batch, pages, records)
        if len(found) == len(rows) and len(records) == len(pages):
            break
    return {
        row["key"]: found[row["key"]] | records.get(row["page_url"] or "", {}) for row in rows if row["key"] in found
    }


def _add_pairs(batch: pa.RecordBatch, before: int, file: str, rows: Sequence[RawRow], found: dict[str, Place]) -> None:
    for row in rows:
        if row["key"] in found:
            continue
        is_it = pc.and_(pc.equal(batch["url"], row["url"]), pc.equal(batch["text"], row["caption"]))
        for position in pc.indices_nonzero(pc.fill_null(is_it, False)).to_pylist():
            if batch["page_url"][position].as_py() == row["page_url"]:
                place = {"place": f"pair {before + position + 1:,} of {file}"}
                holder, offset = batch["file"][position].as_py(), batch["offset"][position].as_py()
                if holder:
                    place["bytes at"] = holder if offset is None else f"{holder}, byte {offset:,}"
                found[row["key"]] = place
                break


def _add_records(batch: pa.RecordBatch, pages: dict[str, str], records: dict[str, Place]) -> None:
    """Remembers the response of each page; of several, the first."""
    wanted = pc.is_in(batch["url"], value_set=pa.array(list(pages), pa.string()))
    for row in batch.filter(pc.fill_null(wanted, False)).to_pylist():
        if row["offset"] is not None:
            records.setdefault(pages[row["url"]], {"record": f"{row['file']}, byte {row['offset']:,}"})


def _size(source: Source) -> int | None:
    """Bytes of its files; None if one is not on this machine."""
    try:
        return sum(Path(file).stat().st_size for file in source.inputs)
    except OSError:
        return None
