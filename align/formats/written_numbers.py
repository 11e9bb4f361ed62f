"""Numbers as people and spreadsheets write them: `19.90`, `1.299,00 €`, `$1,299.00`, `CHF 1'299.00`.

Whether `1.299` is more than a thousand is decided over a whole column: one sign is the decimal one in all its cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = r"[$€£¥₹₽₩₺₴₪₫฿₱]|EUR|USD|GBP|CHF|JPY|CNY|PLN|CZK|SEK|NOK|DKK|HUF|zł|kr"
_SAME = {"EUR": "€", "USD": "$", "GBP": "£", "JPY": "¥", "PLN": "ZŁ"}
_CELL = re.compile(rf"(?:({_SIGNS}) ?)?([-\d.,' ’e+]+?)(?: ?({_SIGNS}))?", re.ASCII | re.IGNORECASE)
#: A number that begins with 0 or has more digits than a double holds is a name, such as an article's.
_WHOLE = r"-?(?:0|[1-9]\d{{0,14}}|[1-9]\d{{0,2}}([{}' ’])\d{{3}}(?:\1\d{{3}}){{0,3}})"
_NUMBERS = [
    (sign, re.compile(rf"{_WHOLE.format(other)}(?:{re.escape(sign)}\d{{1,15}})?(?:e[+-]?\d{{1,2}})?", re.ASCII))
    for sign, other in (".,", ",.")
]
_NAME = re.compile(r"0\d+", re.ASCII)


def _read(cell: str) -> tuple[list[float | None], str]:
    """The number that a cell is if a point is the decimal sign, and if a comma is; and its currency, if it has one."""
    found = _CELL.fullmatch(cell)
    if found is None or (found[1] and found[3]):
        return [None, None], ""
    numbers = [
        float(re.sub(rf"[^-+\de{sign}]", "", found[2]).replace(sign, ".")) if pattern.fullmatch(found[2]) else None
        for sign, pattern in _NUMBERS
    ]
    currency = (found[1] or found[3] or "").upper()
    return numbers, _SAME.get(currency, currency)


def read_number(text: str) -> float:
    """A number that a person typed. Raises ValueError, in words, if it is none, or may be two."""
    values, note, _ = read_column([text])
    if values is None or values[0] is None or note:
        raise ValueError("may be two numbers; write more or fewer decimals" if note else "is no number")
    return values[0]


def read_column(cells: Sequence[str]) -> tuple[list[float | None] | None, str, int]:
    """Reads a column as numbers, if all cells that are not empty can be read so.

    Returns:
        The numbers, parallel to the cells, or None: they are texts; what a person should know of one cell, or nothing;
        and which cell that is.
    """
    read = [_read(cell) for cell in cells]
    known = [(at, *read[at]) for at, cell in enumerate(cells) if cell]
    currency = next((currency for _, currency in read if currency), "")
    points, commas = (sum(numbers[sign] is not None for numbers, _ in read) for sign in (0, 1))
    unsure = [at for at, numbers, _ in known if points == commas and None not in numbers and numbers[0] != numbers[1]]
    sign = int(commas > points)
    if unsure:  # a price has no third decimal, so of the two that `1.299` may be it is the larger one
        sign = int((cells[unsure[0]].count(".") > 0) == bool(currency))
    wrong = [at for at, numbers, its in known if numbers[sign] is None or its not in ("", currency)]
    if 2 * len(wrong) >= len(known) or any(_NAME.fullmatch(cells[at]) for at in wrong):
        return None, "", 0
    if wrong:
        as_others = f"no number in {currency}" if currency else "no number as the others are"
        return None, f"is {as_others}, so the column has texts, which only = compares", wrong[0]
    values = [numbers[sign] for numbers, _ in read]
    if not unsure:
        return values, "", 0
    return values, f"may be two numbers; it is read as {values[unsure[0]]:.15g}", unsure[0]
