"""The layout of the tests: what they share, and how they say that this machine lacks a tool."""

import ast

from tests.support import ROOT

FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in ROOT.glob("tests/**/*.py")}


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
