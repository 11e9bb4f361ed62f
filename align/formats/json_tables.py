"""Reads tables that are JSON files, piece by piece, so that memory does not grow with them.

Rows, one after the other:

    {"url": ..., "caption": ...}                 one object per line; also a single one
    [{"url": ..., "caption": ...}, ...]          one array of objects

Or one object, as `pandas.DataFrame.to_json` writes it:

    {"url": {"0": ...}, "caption": {"0": ...}}               orient="columns", its default; or lists of values
    {"columns": ["url", "caption"], "data": [[...], ...]}    orient="split"
    {"schema": {...}, "data": [{...}, ...]}                  orient="table"

An object with a plain value (a text, a number, null) is a row; one whose values are all objects or lists is a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import zip_longest
from typing import IO, Any, NoReturn

from align.errors import DataError
from align.formats.table_lines import as_text, lines_of

#: Opens the file's bytes, unpacked.
Opening = Callable[[], AbstractContextManager[IO[bytes]]]
Row = dict[str, Any]

_CHUNK_CHARACTERS = 1 << 20
_MAX_VALUE_CHARACTERS = 16 << 20
#: Columns of a table, and the characters of their names. The rows of orient="index" look like columns.
_MAX_COLUMNS, _MAX_NAME_CHARACTERS = 1_000, 1 << 16
_BLANK = re.compile(r"[ \t\r\n]*")
_ENDS = frozenset(",:]}")
_AFTER_VALUE = re.compile(r"[ \t\r\n]*[,:\]}]")
_AS_LINES = "write it as JSON lines: df.to_json(path, orient='records', lines=True)"


class JsonTable:
    """A whole table in one JSON object.

    Attributes:
        names: of its columns.
    """

    def __init__(self, file: str, opening: Opening, names: Sequence[str], data: str | None) -> None:
        """`data`: the member of the object that has the rows; None if each member is a column."""
        self.names = names
        self._file, self._opening, self._data = file, opening, data

    def rows(self, wanted: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
        """The values of these columns, row by row; None for a column that is None, and for a row that is not one.

        Raises:
            DataError: the file is damaged, or its columns do not have the same rows.
        """
        if self._data is None:
            yield from self._side_by_side(wanted)
            return
        with as_text(self._opening) as text:
            pieces = _Pieces(self._file, "table", text)
            for member in pieces.members():
                for _ in pieces.members():
                    value = pieces.value()
                    if member == self._data:
                        row = self._row(value)
                        yield tuple(None if name is None else row.get(name) for name in wanted)

    def _row(self, value: Any) -> Row:
        if isinstance(value, list) and len(value) == len(self.names):
            return dict(zip(self.names, value, strict=True))
        return value if isinstance(value, dict) else {}

    def _side_by_side(self, wanted: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
        """One reader for each column: columns lie one after the other in the file."""
        with ExitStack() as stack:
            texts = [None if name is None else stack.enter_context(as_text(self._opening)) for name in wanted]
            columns = [self._column(text, name) for text, name in zip(texts, wanted, strict=True) if text and name]
            for cells in zip_longest(*columns):
                if None in cells or len({index for index, _ in cells}) > 1:
                    raise DataError(f"{self._file}: its columns do not have the same rows; {_AS_LINES}")
                values = iter([value for _, value in cells])
                yield tuple(None if name is None else next(values) for name in wanted)

    def _column(self, text: IO[str], name: str) -> Iterator[tuple[str | int, Any]]:
        """(index, value) of each row."""
        pieces = _Pieces(self._file, "table", text)
        for member in pieces.members():
            for index in pieces.members():
                value = pieces.value()
                if member == name:
                    yield index, value
            if member == name:
                return


def find_table(file: str, opening: Opening) -> JsonTable | None:
    """The table that the file's one object is; None if the file has rows.

    Raises:
        DataError: something follows the table, it has too many columns, or it is damaged.
    """
    with as_text(opening) as text:
        first = next((line for line in lines_of(text) if line is None or line.strip()), "")
    if first is not None:
        row = object_of(first)
        if not first.lstrip().startswith("{") or row == {} or (row and any(map(_is_plain, row.values()))):
            return None
    with as_text(opening) as text:
        pieces = _Pieces(file, "table", text)
        if pieces.peek() != "{":
            return None
        names: list[str] = []
        listed: Any = []
        for name in pieces.members():
            if pieces.peek() not in ("{", "["):
                return None
            names.append(str(name))
            for key in pieces.members():
                value = pieces.value()
                if (name, key) == ("schema", "fields"):
                    listed = [field.get("name") for field in value if isinstance(field, dict)]
                elif name == "columns" and len(listed) <= _MAX_COLUMNS:
                    listed.append(value)
            _check_names(file, names)
        if pieces.peek():
            raise DataError(f"{file}: something follows the table in its first object; {_AS_LINES}")
    for held in ("columns", "schema"):
        if held in names and "data" in names and set(names) <= {held, "index", "data"}:
            listed = [str(name) for name in listed]
            _check_names(file, listed)
            return JsonTable(file, opening, listed, "data")
    return JsonTable(file, opening, names, None)


def _check_names(file: str, names: Sequence[str]) -> None:
    if len(names) > _MAX_COLUMNS or sum(map(len, names)) > _MAX_NAME_CHARACTERS:
        raise DataError(f"{file}: a JSON object with too many columns, or one whose members are rows; {_AS_LINES}")


def _is_plain(value: Any) -> bool:
    return not isinstance(value, (dict, list))


def rows_of(file: str, stream: IO[bytes]) -> Iterator[Row | None]:
    """The objects of a JSON array, or one per line; None for a line or item that is not an object.

    Raises:
        DataError: the JSON has another shape, or the array is damaged.
    """
    with as_text(stream) as text:
        start = ""
        while not start:
            line = text.readline(_CHUNK_CHARACTERS)
            if not line:
                return
            start = line.lstrip()
        if start[0] == "[":
            yield from _array(_Pieces(file, "array", text, start))
            return
        lines = lines_of(text)
        rest = "" if start.endswith("\n") else next(lines, "")
        first = None if rest is None else object_of(start + rest)
        if first is None and rest is not None and start[0] == "{":
            raise DataError(f"{file}: neither an array of objects nor one object per line; {_AS_LINES}")
        yield first
        yield from (None if line is None else object_of(line) for line in lines if line is None or line.strip())


def object_of(data: str | bytes) -> Row | None:
    """The parsed object; None if this is not a JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _array(pieces: _Pieces) -> Iterator[Row | None]:
    for number in pieces.members():
        value = pieces.value()
        if number == 0 and not isinstance(value, dict):
            raise DataError(f"{pieces.file}: an array of values without the names of their columns; {_AS_LINES}")
        yield value if isinstance(value, dict) else None
    if pieces.peek():
        raise DataError(f"{pieces.file}: something follows the JSON array; {_AS_LINES}")


class _Pieces:
    """Decodes JSON piece by piece; no piece has more than _MAX_VALUE_CHARACTERS."""

    def __init__(self, file: str, what: str, stream: IO[str], start: str = "") -> None:
        """`what`: the JSON, for messages. `start`: what was already read of the stream."""
        self.file, self._what, self._stream = file, what, stream
        self._text, self._at = start, 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        if (first := self._text[self._at : self._at + 1]) and first not in " \t\r\n":
            return first
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            self._text, self._at = self._stream.read(_CHUNK_CHARACTERS), 0
            if not self._text:
                return ""

    def members(self) -> Iterator[str | int]:
        """The names in the object that begins here, or the positions in the array. The caller reads each value."""
        opened = self.peek()
        if opened not in ("{", "["):
            self._damaged()
        self._at += 1
        closing, position = {"{": "}", "[": "]"}[opened], 0
        while self.peek() != closing:
            if opened == "[":
                yield position
            else:
                name = self.value()
                if self.peek() != ":":
                    self._damaged()
                self._at += 1
                yield str(name)
            position += 1
            if self.peek() == ",":
                self._at += 1
            elif self.peek() != closing:
                self._damaged()
        self._at += 1

    def value(self) -> Any:
        """The value that begins here, whole."""
        while True:
            self.peek()
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise DataError(f"{self.file}: the JSON {self._what} is nested too deeply; {_AS_LINES}") from None
            except ValueError:
                end = -1
            if end >= 0 and (
                self._text[end : end + 1] in _ENDS or _AFTER_VALUE.match(self._text, end)
            ):  # otherwise it may be the first digits of a number
                self._at = end
                return value
            more = self._stream.read(_CHUNK_CHARACTERS)
            if not more or len(self._text) - self._at > _MAX_VALUE_CHARACTERS:
                self._damaged()
            self._text, self._at = self._text[self._at :] + more, 0

    def _damaged(self) -> NoReturn:
        raise DataError(f"{self.file}: the JSON {self._what} is cut off or damaged; fetch it again")
