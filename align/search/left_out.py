"""Why rows of a catalogue have no picture: a reason each, examples of it, what to do, and all rows in a CSV."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from align.display.console import say
from align.durable.files import write_bytes
from align.formats.table import is_address
from align.pairs.text import normalise

#: Beside the index: which rows are not in it.
LEFT_OUT = "left_out.csv"
#: Characters of a picture's name: the image's key, which travels in addresses.
MAX_KEY = 400
_NUM_EXAMPLES = 2
#: What no file's name can have.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
#: A spreadsheet would run a cell that begins so.
_FORMULA = ("=", "+", "-", "@")


class LeftOut:
    """The rows that are left out, by their reasons, with the names of pictures as the table writes them.

    Args:
        folder: names of pictures are relative to it.
        max_bytes: of a picture's file.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._root, self._max_bytes = folder, os.path.realpath(folder), max_bytes
        self._rows: dict[str, list[tuple[int, str, str]]] = {}
        self._listed: dict[Path, dict[str, str]] = {}

    def add(self, row: int, written: str, reason: str, hint: str = "") -> None:
        """Notes a row and what to do about it."""
        self._rows.setdefault(reason, []).append((row, normalise(written[:MAX_KEY]), hint))

    def usable(self, row: int, written: str, name: str) -> Path | None:
        """The file of a picture.

        Args:
            row: of the table, from 1 and with its header, as a spreadsheet counts.
            written: in the table.
            name: the same with slashes, without `..` in its middle.

        Returns:
            It is in the folder and not too large; None: it is not, and the row is noted.
        """
        path, inside = self._folder / name, f"name files relative to {self._folder}"
        try:
            if not written:
                self.add(row, written, "without the name of a picture")
            elif is_address(written):
                self.add(row, written, "with an address in place of a file", "download the pictures and name them")
            elif _WINDOWS.match(written):
                tail = self._tail(written)
                self.add(row, written, "with a path of Windows", inside + (f", such as {tail}" if tail else ""))
            elif len(name) > MAX_KEY or _IMPOSSIBLE.search(name):
                self.add(row, written, "without a name that a picture's file can have")
            elif not self._is_inside(path):
                self.add(row, written, "with a picture outside of the folder", inside)
            elif not path.is_file():
                self._missing(row, written, name)
            elif path.stat().st_size > self._max_bytes:
                hint = "make it smaller, or set ingest.max_record_bytes"
                self.add(row, written, f"whose picture has more than {self._max_bytes:,} bytes", hint)
            else:
                return path
        except OSError as error:
            self.add(row, written, "whose picture cannot be read", str(error.strerror))
        return None

    def _missing(self, row: int, written: str, name: str) -> None:
        if other := self._in_other_letters(name):
            self.add(row, written, "whose picture has its name in other letters (A is not a)", f"the file is {other}")
        else:
            self.add(row, written, "whose picture is missing", f"looked for in {self._folder}")

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def _tail(self, written: str) -> str:
        """The end of a path of Windows that is a file of the folder; empty if none is."""
        parts = PureWindowsPath(written[:MAX_KEY]).parts[1:]
        tails = ("/".join(parts[start:]) for start in range(len(parts)) if not _IMPOSSIBLE.search(written))
        files = (tail for tail in tails if self._is_inside(self._folder / tail) and (self._folder / tail).is_file())
        return next(files, "")

    def _in_other_letters(self, name: str) -> str:
        """The file whose name differs in upper and lower case, or in the way of its accents; empty if none does."""
        found = self._folder
        for part in Path(name).parts:
            if found not in self._listed:
                self._listed[found] = {_alike(one.name): one.name for one in found.iterdir()} if found.is_dir() else {}
            if (actual := self._listed[found].get(_alike(part))) is None or not self._is_inside(found / actual):
                return ""
            found /= actual
        return found.relative_to(self._folder).as_posix() if found.is_file() else ""

    def lines(self) -> Iterator[str]:
        """A reason each: the number of its rows, two of them, and what to do."""
        for reason, rows in self._rows.items():
            some = rows[:_NUM_EXAMPLES]
            shown = ", ".join(f"'{written}' (row {row})" if row else f"'{written}'" for row, written, _ in some)
            hint = next((f"; {hint}" for _, _, hint in rows if hint), "")
            yield f"{len(rows):,} {reason}: {shown}{hint}"

    def tell(self, source: Path, out: Path) -> None:
        """Says and writes what is left out of the index `out`."""
        file = out.parent / LEFT_OUT
        if not self._rows:
            file.unlink(missing_ok=True)  # it was of the index before
            return
        for line in self.lines():
            say(f"index: {source}: left out: {line}")
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["row", "picture", "reason", "hint"])
        for reason, rows in self._rows.items():
            for row, written, hint in rows:
                harmless = (f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in (written, reason, hint))
                writer.writerow([row or "", *harmless])
        write_bytes(file, text.getvalue().encode("utf-8-sig", "replace"))
        say(f"index: {sum(map(len, self._rows.values())):,} rows left out, all of them in {file}")


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
