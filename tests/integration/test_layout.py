"""The layout of the tests: where each lies, what they share, and how they say that this machine lacks a tool."""

import ast
import re

from align.config.filter import FilterConfig
from align.filter.rules import active
from tests.support import ROOT
from tests.support.params import load_params

#: What a rule of the filter needs (docs/models.md).
OF_A_RULE = (
    "align/filter/rules.py", "tests/unit/filter/test_rules.py", "params.yaml", "tests/support/params.yaml",
    "docs/glossary.md",
)  # fmt: skip
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


def test_a_rule_that_is_on_is_in_its_five_files():
    texts = {file: (ROOT / file).read_text("utf-8") for file in OF_A_RULE}
    codes = active(load_params().section(FilterConfig))
    lacking = [(code, file) for code in codes for file in OF_A_RULE if not re.search(rf"\b{code}\b", texts[file])]
    assert lacking == [], "see docs/models.md, Changing something"
