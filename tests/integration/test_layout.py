"""The layout of the tests: where each lies, what they share, and how they say that this machine lacks a tool."""

import ast

from tests.support import ROOT

FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in ROOT.glob("tests/**/*.py")}


def answers(file):
    """What a file of tests/unit is named for: in align/, at the top (flows/, infra/, docs/), or in tests/support."""
    *folder, name = file.removeprefix("tests/unit/").split("/")
    places = (ROOT.joinpath(top, *folder) for top in ("align", "", "tests"))
    there = (path.name.lstrip(".").partition(".")[0].lower() for place in places for path in place.glob("*"))
    return name.removeprefix("test_").removesuffix(".py") in there


def test_every_unit_test_is_named_for_what_it_tests():
    ours = [file for file in FILES if file.startswith("tests/unit/") and "/test_" in file]
    assert [file for file in ours if not answers(file)] == [], "see CONTRIBUTING.md: what else is in tests/integration"


def test_no_test_file_imports_another():
    """A subprocess may import the file that starts it, which is text here."""
    imports = {
        (file, name)
        for file, tree in FILES.items() for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names for name in (f"{getattr(node, 'module', '')}.{alias.name}".split("."))
    }  # fmt: skip
    assert [(file, name) for file, name in sorted(imports) if name.startswith("test_")] == []


def test_a_tool_that_is_missing_is_said_by_missing():
    """pytest's importorskip skips with CI=true, too; `missing` of tests/support fails there."""
    names = {(file, getattr(node, "attr", None)) for file, tree in FILES.items() for node in ast.walk(tree)}
    assert [file for file, name in sorted(names, key=str) if name == "importorskip"] == []
