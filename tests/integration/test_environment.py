"""Every variable of the environment that the code names is in the table of docs/architecture.md, and no other."""

import ast
import re
from fnmatch import fnmatchcase

from tests.support import ROOT

_NAME = re.compile(r"[A-Z][A-Z0-9]*(_+[A-Z0-9]+)+")
_OTHER = {"F_SETPIPE_SZ"}  # of fcntl


def named():
    """The variables that align and flows name: what os.environ is asked for, and what looks like one in such a file."""
    found = set()
    texts = (path.read_text("utf-8") for folder in ("align", "flows") for path in (ROOT / folder).rglob("*.py"))
    for text in (text for text in texts if re.search(r"\benviron\b|\bgetenv\b", text)):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
                found.add(node.value)
            asked = node.args[0] if isinstance(node, ast.Call) and node.args else getattr(node, "slice", None)
            of = node.func if isinstance(node, ast.Call) else getattr(node, "value", None)
            whole = ast.unparse(of) if isinstance(asked, ast.Constant) and isinstance(of, ast.AST) else ""
            if re.search(r"\b(environ(\.\w+)?|getenv)$", whole):
                found.add(asked.value)
    return found - _OTHER


def test_the_table_lists_each_variable():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    table = text.partition("\n## The environment\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([A-Z][A-Z0-9_*]+)`", table))
    variables = named()
    assert {"DVC_STAGE", "CC", "PATH", "ALIGN_PROGRESS_FILE"} <= variables  # it finds each way to ask
    assert {name for name in variables if not any(fnmatchcase(name, each) for each in listed)} == set()
    assert {each for each in listed if not any(fnmatchcase(name, each) for name in variables)} == set()
