"""Blocks of 3 rows, so that tests' data are many blocks: no fault hides in the second one, or in a part of the last.

Sizes of blocks are the constants of modules whose names end in AT_ONCE; `tests/integration/test_blocks.py` finds loops
over blocks whose size is called otherwise.
"""

import importlib
import re
from functools import cache

import pytest

from tests.support import ROOT

NAME = re.compile(r"\b_?[A-Z_]*AT_ONCE\b")


@pytest.fixture
def small_blocks(monkeypatch):
    """Sets all sizes of blocks to 3, where they are made and where they are imported; (module, name) of each."""
    found = [
        (module.__name__, name) for module in modules() for name in sorted(set(vars(module))) if NAME.fullmatch(name)
    ]
    for module, name in found:
        monkeypatch.setattr(f"{module}.{name}", 3)
    return found


@pytest.fixture(params=["usual blocks", "small blocks"])
def any_blocks(request):
    """Does a test twice: with the sizes that users have, and with small ones."""
    if request.param == "small blocks":
        request.getfixturevalue("small_blocks")
    return request.param


@pytest.fixture
def with_small_blocks(request):
    """Makes something with the usual blocks and with small ones, named by "usual" and "small"; returns both."""

    def made(make):
        usual = make("usual")
        request.getfixturevalue("small_blocks")
        return usual, make("small")

    return made


@cache
def modules():
    """All modules with such a name, imported here: one that a test imported later would keep the 3."""
    return [importlib.import_module(name) for name in sorted(map(_module, files()))]


@cache
def files():
    return [path for path in sorted((ROOT / "align").rglob("*.py")) if NAME.search(path.read_text("utf-8"))]


def _module(path):
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
