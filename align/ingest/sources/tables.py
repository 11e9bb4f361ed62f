"""The tables of a source (`align.formats.table`): which of their columns are read, and the pairs of their rows.

`ingest.columns` names the columns, in upper or lower case. A column that it does not name is found by its usual names:
the first of them that the table has. A column of parquet that has the pictures themselves counts before those that name
them. A row gives a pair for each of its texts; one that cannot be read is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from align.config.ingest import IngestConfig
from align.formats.table import (
    ADDRESS_COLUMNS,
    INSIDE_COLUMNS,
    PLAIN_LISTS,
    TEXT_COLUMNS,
    CutOffError,
    NoColumnError,
    Table,
    find_column,
)
from align.ingest.limits import MAX_PAGE_CHARACTERS
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Batches, count_damage
from align.ingest.sources.texts import NESTED, Sourced, texts_of_each
from align.interfaces.store import Files

#: `text_source` of a table without header.
_UNNAMED = "caption"
_NO_TEXT: list[Sourced] = [("", None)]
NO_PICTURE = "no address"


class WrittenPairs(NamedTuple):
    """A row as it is written."""

    picture: str  # its address or file name; empty: none
    texts: list[Sourced]  # at least one, which may be empty, each with its column
    page_url: str | None  # of the page that shows the picture
    problem: str | None  # why its values cannot be read
    inside: tuple[int, int] | None = None  # row group and row of the parquet file, if that has the picture itself


class Tables:
    """The rows of the tables of a source. Can be pickled."""

    def __init__(self, config: IngestConfig, files: Files, usual: Sequence[str]) -> None:
        """`usual`: names of the column of pictures, those that come first in this kind of source first."""
        self._columns, self._usual, self._store = config.columns, usual, files

    @contextmanager
    def open(self, file: str) -> Iterator[Table]:
        """A table. Raises as `Table`."""
        with self._store.open(file) as stream:
            named = (self._columns.url, *self._columns.texts, self._columns.page_url)
            yield Table(stream, file, [name for name in named if name is not None])

    def names_pictures(self, table: Table) -> bool:
        """Whether the header of a table has a column of pictures."""
        wanted = self._usual if self._columns.url is None else [self._columns.url]
        return table.has_header and (find_column(wanted, table.names) or self.inside(table)) is not None

    def inside(self, table: Table) -> str | None:
        """The column that has the pictures themselves; None: the table names pictures."""
        return find_column(INSIDE_COLUMNS if self._columns.url is None else [self._columns.url], table.pictures)

    def look_at(self, file: str) -> Sequence[str]:
        """Reads the beginning of a table: what was found in it, as lines of output.

        Raises NoColumnError if it is empty or lacks a column, or a .txt a header; DataError if the table is damaged.
        """
        said: list[str] = []
        with suppress(CutOffError), self.open(file) as table:
            if file.lower().endswith(PLAIN_LISTS) and not self.names_pictures(table):
                raise NoColumnError(f"{file}: no header with a column of pictures")
            if table.is_empty:
                raise NoColumnError(f"{file}: the table is empty")
            self._chosen(file, table, said.append)
        return said

    def rows(
        self, file: str, counts: Counter[str], tell: Callable[[str], object], groups: Iterable[int] | None = None
    ) -> Iterator[WrittenPairs]:
        """The rows of a table in order, or of some row groups; `tell` is called with what was found, if there is such.

        Rows that cannot be read count, and a file that is cut off counts as damaged. Raises as `look_at`.
        """
        try:
            with self.open(file) as table:
                wanted, sources = ([], ()) if table.is_empty else self._chosen(file, table, tell)
                if self.inside(table) is not None:
                    for group in range(len(table.group_rows)) if groups is None else groups:
                        first = sum(table.group_rows[:group])
                        for number, values in enumerate(filter(None, table.rows(wanted, group)), first):
                            pairs = _written_pairs(None, values[2:], values[1], sources)
                            yield pairs._replace(inside=(group, number))
                    return
                for row in table.rows(wanted):
                    if row is None:
                        counts["rows_unreadable"] += 1
                    else:
                        yield _written_pairs(row[0], row[2:], row[1], sources)
        except CutOffError:
            count_damage(counts, file, "cut off")

    def _chosen(self, file: str, table: Table, tell: Callable[[str], object]) -> tuple[list[str | None], Sequence[str]]:
        """The columns of picture, page and each text, and what `text_source` says of each text."""
        columns = self._columns
        if table.layout:
            tell(table.layout)
        if not table.has_header:
            if len(columns.texts) > 1:
                raise NoColumnError(f"{file}: no header, so it has one text: name one column in ingest.columns.text")
            return ["picture", "page", "text"], columns.texts or (_UNNAMED,)
        picture = self.inside(table)
        try:
            picture = picture or table.column("pictures", columns.url, self._usual, "ingest.columns.url")
        except NoColumnError as error:
            if self.names_pictures(table) or find_column(ADDRESS_COLUMNS, table.names) is None:
                raise
            raise NoColumnError(f"{error}, or fetch addresses with ingest.source: url_table") from None
        setting = "ingest.columns.text"
        texts = [table.column("texts", name, TEXT_COLUMNS, setting, lists=True) for name in columns.texts or (None,)]
        page = columns.page_url
        if page is not None:
            page = table.column("pages", page, (), "ingest.columns.page_url")
        guessed = {} if columns.url is not None else {"url": ("pictures", picture, self._usual)}
        guessed |= {} if columns.texts else {"text": ("texts", texts[0], TEXT_COLUMNS)}
        if guessed:
            found = ", ".join(f"{what} from column '{name[:100]}'" for what, name, _ in guessed.values())
            others = [
                f"'{one[:100]}'" for _, name, usual in guessed.values() for one in table.names
                if one.lower() in usual and one != name
            ]  # fmt: skip
            also = f" (not from {', '.join(others)})" if others else ""
            tell(f"{found}{also}; for others set {' and '.join(f'ingest.columns.{key}' for key in guessed)}")
        return [None if picture in table.pictures else picture, page, *texts], columns.texts or texts


def _written_pairs(picture: Any, values: Sequence[Any], page_url: Any, columns: Sequence[str]) -> WrittenPairs:
    """The pairs of a row: its picture, the values of the columns of texts, and its page; None where it has none."""
    texts, problem = texts_of_each(values, columns)
    if isinstance(picture, (dict, list)) or isinstance(page_url, (dict, list)):
        picture, texts, page_url, problem = None, _NO_TEXT, None, NESTED
    page = None if page_url is None else str(page_url)
    written = "" if picture is None else str(picture).strip()
    if len(texts) > 1:
        num_characters = sum(len(text) + len(written) + len(page or "") for text, _ in texts)
        if num_characters > MAX_PAGE_CHARACTERS:
            texts, problem = _NO_TEXT, f"too large: a row whose {len(texts):,} texts repeat a long address"
    return WrittenPairs(written, texts, page, problem)


def add_pairs(batches: Batches, counts: Counter[str], pairs: WrittenPairs, picture: Candidate) -> None:
    """Adds the pairs of a row, and counts them; `picture` is a candidate without text.

    A row whose picture is missing does not count as one that cannot be read.
    """
    if pairs.problem:
        counts["rows_unreadable"] += len(pairs.texts)
    counts["rows"] += len(pairs.texts)
    for text, source in pairs.texts:
        batches.add(picture._replace(text=text, text_source=source))
