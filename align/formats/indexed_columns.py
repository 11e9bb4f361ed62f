"""The columns of a catalogue, `columns.parquet` in an index: row i belongs to image i of `items.parquet`.

A column whose values are all numbers (`1.5`, `1,5`) has numbers, any other has texts. They are a stranger's: a filter
names a known column and a value, and nothing of either is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.parquet import of_index, read_whole

COLUMNS = "columns.parquet"
Value = str | int | float | None

#: A number; one that begins with 0 or has more digits than a double holds is a name, such as an article's.
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:[.,]\d{1,15})?(?:e[+-]?\d{1,2})?", re.ASCII)
_OPERATOR = re.compile("<=|>=|=|<|>")
_COMPARE = {"=": pc.equal, "<": pc.less, ">": pc.greater, "<=": pc.less_equal, ">=": pc.greater_equal}
#: Different texts of a column that a page offers to choose from, and the characters of each.
_MAX_CHOICES, _LONGEST_CHOICE = 50, 100


def write_columns(directory: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Writes the file: the values of each column as the table has them; an empty one is missing."""
    typed = {name: _typed(values) for name, values in columns.items()}
    pq.write_table(pa.table(typed), directory / COLUMNS, compression="zstd", write_page_checksum=True)


def _typed(values: Sequence[str]) -> pa.Array:
    known = [value for value in values if value]
    if not known or not all(map(_NUMBER.fullmatch, known)):
        return pa.array([value or None for value in values], pa.string())
    return pa.array([float(value.replace(",", ".")) if value else None for value in values], pa.float64())


class IndexedColumns:
    """The columns in memory; an index without the file has none."""

    def __init__(self, table: pa.Table | None) -> None:
        self._columns = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))

    @classmethod
    def load(cls, directory: Path, num_images: int) -> IndexedColumns:
        """Opens what `write_columns` wrote. Raises CorruptError if it is damaged, or of other images."""
        if not (directory / COLUMNS).exists():
            return cls(None)
        with of_index(directory / COLUMNS, num_images):
            table = read_whole(directory / COLUMNS)
            if any(kind not in (pa.string(), pa.float64()) for kind in table.schema.types) or (
                len(table) != num_images and table.num_columns
            ):
                raise pa.ArrowInvalid("other columns, or other images")
            return cls(table)

    def of(self, position: int) -> dict[str, Value]:
        """Column -> value of one image."""
        return {name: _plain(column[position].as_py()) for name, column in self._columns.items()}

    @cached_property
    def choices(self) -> dict[str, list[str] | None]:
        """Column -> its texts to choose from, in order; empty: they are many, long, or seldom repeat; None: numbers."""
        found: dict[str, list[str] | None] = {}
        for name, column in self._columns.items():
            different = None if pa.types.is_floating(column.type) else pc.unique(column.drop_null())
            few = different is not None and len(different) <= min(_MAX_CHOICES, len(column) // 2)
            few = few and (pc.max(pc.utf8_length(different)).as_py() or 0) <= _LONGEST_CHOICE
            found[name] = None if different is None else sorted(different.to_pylist()) if few else []
        return found

    def matching(self, condition: str) -> NDArray[np.bool_]:
        """Which images fulfil `COLUMN=VALUE`, or for a column of numbers also `<`, `<=`, `>`, `>=`.

        Raises:
            DataError: no column has this name, or the value does not suit it.
        """
        names = {name.casefold(): name for name in self._columns} | {name: name for name in self._columns}
        for operator in _OPERATOR.finditer(condition):
            written = condition[: operator.start()].strip()
            name = names.get(written) or names.get(written.casefold())
            if name is not None:
                return self._compared(name, operator[0], condition[operator.end() :].strip())
        known = ", ".join(self._columns) or "none; `align index --source` makes an index with columns"
        raise DataError(f"{condition!r}: expected COLUMN=VALUE, <, <=, > or >= with a column of the index: {known}")

    def _compared(self, name: str, operator: str, text: str) -> NDArray[np.bool_]:
        column = self._columns[name]
        value: str | float = text
        if pa.types.is_floating(column.type):
            if not _NUMBER.fullmatch(text):
                raise DataError(f"{name}{operator}{text}: column {name} has numbers, so give one")
            value = float(text.replace(",", "."))
        elif operator != "=":
            raise DataError(f"{name}{operator}{text}: column {name} has texts, which only = compares")
        found: NDArray[np.bool_] = pc.fill_null(_COMPARE[operator](column, value), False).to_numpy()
        return found


def _plain(value: Value) -> Value:
    return int(value) if isinstance(value, float) and value.is_integer() else value
