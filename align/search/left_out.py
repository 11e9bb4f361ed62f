"""Why rows of a catalogue have no picture: a reason each, with what to do, two examples, and all rows in a CSV."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

from align.display.console import say
from align.durable.files import write_bytes
from align.formats.table import is_address
from align.pairs.text import normalise

#: After the name of the index, beside it: which rows are not in it. The name is of no file of a person.
LEFT_OUT = ".left_out.csv"
#: Characters of a picture's name: the image's key, which travels in addresses.
_MAX_KEY = 400
#: What no file's name can have.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
#: What a spreadsheet would run.
_FORMULA = re.compile("^[=+@-]")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class LeftOut:
    """The rows without a picture, by reason, in order of the table. `folder` has the pictures."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self._root, self._max_bytes = folder, os.path.realpath(folder), max_bytes
        self._rows: dict[str, list[tuple[int, str]]] = {}
        self._listed: dict[Path, dict[str, str]] = {}

    def add(self, row: int, written: str, reason: str) -> None:
        """Notes a row, as a spreadsheet counts them, 0 for a file of a folder, and what it names as its picture."""
        self._rows.setdefault(reason, []).append((row, normalise(written[:_MAX_KEY])))

    def has_picture(self, row: int, written: str, name: str) -> bool:
        """Whether there is a file `name`, which is what is written with slashes; if not, the row is noted."""
        path, relative = self.folder / name, f"name files relative to {self.folder}"
        if not written or len(name) > _MAX_KEY or _IMPOSSIBLE.search(name):
            self.add(row, written, "without a name that a picture's file can have")
        elif is_address(written):
            self.add(row, written, "with an address of the web; download the pictures, and name their files")
        elif _WINDOWS.match(written):
            self.add(row, written, f"with a path of Windows; {relative}")
        elif not self._is_inside(path):
            self.add(row, written, f"with a picture outside of the folder; {relative}")
        elif path.is_file() and path.stat().st_size > self._max_bytes:
            self.add(row, written, f"whose picture has more than {self._max_bytes:,} bytes (ingest.max_record_bytes)")
        elif path.is_file():
            return True
        elif other := self._in_other_letters(name):
            self.add(row, f"{written} is {other}", "whose file has a name in other letters; write it as the file")
        else:
            self.add(row, written, "whose picture is missing")
        return False

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def _in_other_letters(self, name: str) -> str:
        found = self.folder
        for part in Path(name).parts:
            if found not in self._listed:
                names = [one.name for one in found.iterdir()] if found.is_dir() else []
                self._listed[found] = {one.casefold(): one for one in names}
            found /= self._listed[found].get(part.casefold(), part)
            if not self._is_inside(found):
                return ""
        return found.relative_to(self.folder).as_posix() if found.is_file() else ""

    def tell(self, source: Path, out: Path) -> str:
        """Says and writes what is left out of the index `out`; returns the reasons."""
        file, reasons = out.with_name(out.name + LEFT_OUT), list[str]()
        file.unlink(missing_ok=True)  # of the index before
        if not self._rows:
            return "no row"
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["row", "picture", "reason"])
        for reason, rows in self._rows.items():
            shown = ", ".join(
                " ".join(filter(None, [written and f"'{written}'", f"(row {row})" if row else ""]))
                for row, written in rows[:2]
            )
            reasons.append(f"{len(rows):,} {reason}: {shown}")
            say(f"index: {source}: left out: {reasons[-1]}")
            writer.writerows((row or "", _FORMULA.sub(r"'\g<0>", written), reason) for row, written in rows)
        write_bytes(file, text.getvalue().encode("utf-8-sig", "replace"))
        say(f"index: {sum(map(len, self._rows.values())):,} rows left out: {file}")
        return "; ".join(reasons)
