"""Numbers of spreadsheets: currencies, thousands, either decimal sign, decided over a whole column."""

import pytest

from align.formats.written_numbers import read_column, read_number


@pytest.mark.parametrize(("cells", "numbers"), [
    (["1.299,00 €", "19,90", "", "7"], [1299, 19.9, None, 7]),
    (["$1,299.00", "$ 5"], [1299, 5]),
    (["1 299,50 EUR", "10 €", "EUR 3"], [1299.5, 10, 3]),
    (["CHF 1'299.00", "chf 2"], [1299, 2]),
    (["1.299", "7,5"], [1299, 7.5]),
    (["1.299", "0.5"], [1.299, 0.5]),
    (["1,299", "7.5"], [1299, 7.5]),
    (["1.299.000", "1.500"], [1299000, 1500]),
    (["19.90", "-5"], [19.9, -5]),
    (["1e-05", "2"], [1e-05, 2]),
])  # fmt: skip
def test_numbers(cells, numbers):
    assert read_column(cells) == (numbers, "", 0)


@pytest.mark.parametrize(("cells", "numbers", "note", "at"), [
    (["5", "1.299"], [5, 1.299], "may be two numbers; it is read as 1.299", 1),
    (["5", "1,299"], [5, 1.299], "may be two numbers; it is read as 1.299", 1),
    (["5 €", "1.299"], [5, 1299], "may be two numbers; it is read as 1299", 1),  # a price has no third decimal
    (["$1,299", "1,500"], [1299, 1500], "may be two numbers; it is read as 1299", 0),
    (["7.5", "7.25", "7,5"], None, "is no number as the others are, so the column has texts", 2),
    (["10", "ask us", "20", "30", "19,-"], None, "is no number as the others are", 1),
    (["10 €", "5 $", "1 €"], None, "is no number in €", 1),
])  # fmt: skip
def test_what_is_said_of_a_cell(cells, numbers, note, at):
    found = read_column(cells)
    assert (found[0], found[2]) == (numbers, at) and note in found[1]


@pytest.mark.parametrize(
    "cells",
    [[], ["", ""], ["red", "blue", "3"], ["007", "8", "9"], ["€", "$"], ["9" * 999], ["1." * 500], ["٣"], ["€5€"]],
)
def test_texts_of_which_nothing_is_said(cells):
    assert read_column(cells) == (None, "", 0)


def test_one_number():
    assert [read_number(text) for text in ("19,9", "1.299,50", "1.299,5 €", "0.125")] == [19.9, 1299.5, 1299.5, 0.125]
    for text, said in (("-1,000", "may be two numbers; write more"), ("x", "is no number"), ("", "is no number")):
        with pytest.raises(ValueError, match=said):
            read_number(text)
