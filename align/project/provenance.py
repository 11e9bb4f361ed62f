"""Which code decides which bytes: the modules that a module imports inside `align`, and a digest of what they do.

Everything that must know this uses one mechanism: the digests of code.yaml, on which the stages of dvc.yaml depend; the
keys of work folders, in which a killed run resumes; the keys of training runs; and the code that a packaged model
carries.

The digest is over what the code does: over the syntax of the modules, which neither layout nor another version of
Python changes. Comments, docstrings and the words of progress lines are left out. A data file of the package counts as
a part of the modules beside it that name it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

_ROOT = Path(__file__).parents[1]

#: Modules that change no byte of any stage's result. Those of config sections say so themselves
#: (`Section.changes_bytes`).
NEUTRAL = frozenset({
    "align",  # names of the Python API
    "align.cli",  # calls the verb
    "align.errors",  # words of failures
    "align.display.console",  # progress lines
    "align.display.html",  # looks of pages: no stage reads a page
    "align.display.figure",  # looks of figures
    "align.durable.memory",  # how fast, not what
    "align.durable.cores",
    "align.project.declared",  # refuses a stage, changes none
    "align.services.git",
    "align.durable.locks",  # when, not what
    "align.project.provenance",  # names code, decides nothing
    "align.training.given_tars",  # of `--data`, which no stage of dvc.yaml has
    "align.config.params",  # reads params.yaml, whose values are tracked themselves
    "align.interfaces.executor",  # signatures
    "align.interfaces.sql",
    "align.interfaces.store",
    "align.interfaces.vectors",
    "align.services.spark_engine",  # where SQL runs; its decisions equal DuckDB's, row for row (a test)
    "align.services.s3.store",  # where bytes are stored
    "align.services.s3.client",
    "align.services.files.files",
    "align.services.store_work",
    "align.services.executors.executors",  # who does tasks, not what they are
    "align.services.dvc.outs",  # whether a command may write
    "align.services.dvc.commands",  # what DVC is told
    "align.services.tracking.address",  # what MLflow is told
    "align.services.tracking.tracker",  # and what it has: registry, tracked_run
    "align.services.tracking.live_log",
    "align.services.job",  # which machines train
})  # fmt: skip


#: Stage's module -> modules that it imports and must not depend on. Ingest reads the filter's cuts on texts, to skip
#: pictures that cannot be kept: another cut, or a new rule, must not fetch the web again. The comparison of two models
#: (`align evaluate --compare`) is not part of the stage, nor is the index of a catalogue (`align index --source`).
UNTRACKED = {
    "align.ingest.ingest": frozenset({"align.config.filter"}),
    "align.evaluate.evaluate": frozenset({"align.evaluate.compare"}),
    "align.search.index": frozenset({"align.search.catalogue"}),
}


def closure(module: str) -> dict[str, Path]:
    """The modules of `align` that importing this one loads, at its top or later: name -> file; itself included."""
    return _closure(module, frozenset())


def deciding(module: str) -> dict[str, Path]:
    """The modules that can change the bytes this one makes: its closure, without entering byte-neutral modules.

    Those of UNTRACKED are left out, too.
    """
    found = _closure(module, NEUTRAL | UNTRACKED.get(module, frozenset()))
    return {name: path for name, path in found.items() if name != "align.config"}  # it only re-exports `params`


def digest(*modules: str) -> str:
    """Hex sha256 of what the deciding modules of these do."""
    files = {name: path for module in modules for name, path in deciding(module).items()}
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name} {_read(path).digest}\n".encode())
    return total.hexdigest()


def _closure(module: str, neutral: frozenset[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting, seen = [module], set(neutral)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(name)
        if path is None or (neutral and _read(path).changes_no_bytes):
            continue
        found[name] = path
        waiting += _read(path).imports
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs its package
    return found


def _file(name: str) -> Path | None:
    parts = name.split(".")[1:]
    module, package = _ROOT.joinpath(*parts).with_suffix(".py"), _ROOT.joinpath(*parts, "__init__.py")
    return package if package.is_file() else module if parts and module.is_file() else None


class _Module(NamedTuple):
    """What is known of a module.

    Attributes:
        digest: hex sha256 of what it does, and of the data files that it names.
        imports: names of modules of `align`, and names that may be modules.
        changes_no_bytes: it is a module of `align.config`, and its section says so.
    """

    digest: str
    imports: tuple[str, ...]
    changes_no_bytes: bool


@cache
def _read(path: Path) -> _Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = "".join(_said(tree))
    total = hashlib.sha256(said.encode())
    for data in sorted({*_DATA_FILE.findall(said)}):
        if (path.parent / data).is_file():
            total.update((path.parent / data).read_bytes())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import | ast.AnnAssign)]
    neutral = path.parent.name == "config" and any(
        isinstance(node, ast.AnnAssign)
        and ast.unparse(node.target) == "changes_bytes"
        and isinstance(node.value, ast.Constant)
        and node.value.value is False
        for node in nodes
    )
    return _Module(total.hexdigest(), tuple(_imports(nodes)), neutral)


#: A data file of the package, as `_said` writes its name.
_DATA_FILE = re.compile(r"'([a-z_]+\.(?:csv|json|txt|yaml))'")


def _imports(nodes: list[Any]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "align":
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "align")


#: Fields of syntax that mean nothing, or repeat what is around them.
_LEFT_OUT = frozenset({"ctx", "kind", "type_comment"})


def _said(node: Any) -> Iterator[str]:
    """The syntax below a node, as text. `ast.dump` and `ast.unparse` differ between versions of Python."""
    if isinstance(node, list):
        for each in node:
            yield from _said(each)
    elif not isinstance(node, ast.AST):
        yield repr(node)
    elif _is_words(node):
        yield "(Pass)"
    else:
        if _calls(node, "track"):  # without the words that it shows
            node = ast.Call(node.func, node.args, [keyword for keyword in node.keywords if keyword.arg != "what"])
        yield f"({type(node).__name__}"
        for field in node._fields:
            value = getattr(node, field, None)
            if value is None or value == [] or field in _LEFT_OUT:
                continue  # a field that only other versions know is empty
            yield f" {field}="
            yield from _said(value)
        yield ")"


def _is_words(node: ast.AST) -> bool:
    """Whether it is a string that stands alone (a docstring), or a call of `say`."""
    value = node.value if isinstance(node, ast.Expr) else None
    alone = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return alone or _calls(value, "say")


def _calls(node: ast.AST | None, name: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
