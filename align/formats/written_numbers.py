"""Numbers as people and spreadsheets write them: `19.90`, `1.299,00 €`, `$1,299.00`, `CHF 1'299.00`.

Whether `1.299` is more than a thousand is decided over a whole column: a value that can be read in one way only says
which sign is the decimal one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_SIGNS = r"[$€£¥₹₽₩₺₴₪₫฿₱]|EUR|USD|GBP|CHF|JPY|CNY|PLN|CZK|SEK|NOK|DKK|HUF|zł|kr"
_SAME = {"EUR": "€", "USD": "$", "GBP": "£", "JPY": "¥", "PLN": "ZŁ"}
_CELL = re.compile(rf"(?:({_SIGNS}) ?)?([-\d.,' ’e+]+?)(?: ?({_SIGNS}))?", re.ASCII | re.IGNORECASE)
#: A number that begins with 0 or has more digits than a double holds is a name, such as an article's.
_WHOLE = r"-?(?:0|[1-9]\d{{0,14}}|[1-9]\d{{0,2}}([{}' ’])\d{{3}}(?:\1\d{{3}}){{0,3}})"
#: Decimal sign, and what a number is then.
_NUMBERS = [
    (sign, re.compile(rf"{_WHOLE.format(other)}(?:{re.escape(sign)}\d{{1,15}})?(?:e[+-]?\d{{1,2}})?", re.ASCII))
    for sign, other in (".,", ",.")
]
_NAME = re.compile(r"0\d+", re.ASCII)


class Column(NamedTuple):
    """The values of a column.

    Attributes:
        numbers: parallel to the cells, None for an empty one; None: the cells are texts.
        note: what a person should know of the cell `at`; empty: nothing.
        at: its position.
    """

    numbers: list[float | None] | None
    note: str = ""
    at: int = 0


def read(cell: str) -> tuple[list[float | None], str]:
    """The number that a cell is if a point is the decimal sign, and if a comma is; and its currency, if it has one."""
    found = _CELL.fullmatch(cell)
    if found is None or (found[1] and found[3]):
        return [None, None], ""
    written, currency = found[2], (found[1] or found[3] or "").upper()
    numbers = [
        float(re.sub(rf"[^-+\de{sign}]", "", written).replace(sign, ".")) if pattern.fullmatch(written) else None
        for sign, pattern in _NUMBERS
    ]
    return numbers, _SAME.get(currency, currency)


def read_one(text: str) -> float:
    """A number that a person typed. Raises ValueError, in words, if it is none, or may be two."""
    numbers, currency = read(text)
    different = {number for number in numbers if number is not None}
    if not different:
        raise ValueError("is no number")
    if len(different) > 1 and not currency:
        low, high = sorted(different, key=abs)
        raise ValueError(f"may be {low:.15g} or {high:.15g}; write {low:.4f} or {high:.15g}")
    return max(different, key=abs)


def read_column(cells: Sequence[str]) -> Column:
    """Reads a column as numbers, if all cells that are not empty can be read so, one way for all."""
    known, wrong, others = list[tuple[int, list[float | None]]](), list[int](), list[int]()
    currency, num_cells = "", sum(map(bool, cells))
    for at, cell in enumerate(cells):
        if not cell:
            continue
        numbers, its_currency = read(cell)
        currency = currency or its_currency
        if numbers == [None, None]:
            wrong.append(at)
            if 2 * len(wrong) >= num_cells or _NAME.fullmatch(cell):
                return Column(None)
        elif its_currency in ("", currency):
            known.append((at, numbers))
        else:
            others.append(at)
    if not num_cells:
        return Column(None)
    texts = "so the column has texts, which only = compares"
    if wrong:
        more = f", nor are {len(wrong) - 1:,} more" if wrong[1:] else ""
        return Column(None, f"is no number{more}; {texts}", wrong[0])
    if others:
        return Column(None, f"is not in {currency} as the others; {texts}", others[0])
    signs = [sign for sign in (0, 1) if all(numbers[sign] is not None for _, numbers in known)]
    unsure = next((at for at, numbers in known if None not in numbers and numbers[0] != numbers[1]), None)
    if unsure is not None and not signs:
        return Column(None, f"may be two numbers, since both signs are decimal signs here; {texts}", unsure)
    found: list[float | None] = [None] * len(cells)
    for at, numbers in known:
        if len(signs) == 1:
            found[at] = numbers[signs[0]]
        else:  # a price has no third decimal, so of the two that `1.299` may be it is the larger one
            some = sorted((number for number in numbers if number is not None), key=abs)
            found[at] = some[-1 if currency else 0]
    if unsure is None or len(signs) == 1:
        return Column(found)
    return Column(found, f"may be two numbers and is read as {found[unsure]:.15g}, as all that are like it", unsure)
