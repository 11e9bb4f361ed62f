"""The pages and the tests hold the same journeys: no block of commands that no test types."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.support.journeys import DOCS, names, outside, script

PAGES = sorted(DOCS.glob("*.md"))
#: A first user's hours. More may be written, none may go.
EXPECTED = {
    ("own-data", "pictures"), ("own-data", "img2dataset"), ("own-data", "table"), ("own-data", "sets"),
    ("own-data", "compare"), ("own-model", "align-base"), ("models", "rule"), ("scale", "s3"),
}  # fmt: skip


def taken():
    """(page, journey) of every call of `travel` in the tests beside this one."""
    for file in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "travel":
                page, name = (ast.literal_eval(argument) for argument in node.args[1:3])
                yield page, name


def test_every_journey_is_taken_by_exactly_one_test():
    written = Counter((page.stem, name) for page in PAGES for name in names(page))
    assert Counter(taken()) == written
    assert max(written.values()) == 1 and len({name for _, name in written}) == len(written)
    assert set(written) >= EXPECTED


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_commands_is_in_a_journey(page):
    assert outside(page) == []
    for name in names(page):
        assert script(page, name)
