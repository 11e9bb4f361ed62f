"""Which code decides which bytes: the modules that a module imports inside `align`, and a digest of them.

One mechanism serves everything that must know it: the code deps of dvc.yaml (through their test), the keys of work
folders that a killed run resumes in, the keys of training runs, and the code that a packaged model carries.

The digest is over what the code does. Comments, docstrings and the words of progress lines are left out, so that
rewording them restarts nothing.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent

#: Modules that change no byte of any stage's result. Those of config sections say so themselves
#: (`Section.changes_bytes`).
NEUTRAL = frozenset({
    "align.cli",  # calls the verb
    "align.errors",  # words of failures
    "align.console",  # progress lines
    "align.html",  # looks of pages: no stage reads a page
    "align.figure",  # likewise of figures
    "align.memory",  # how fast, not what
    "align.declared",  # refuses a stage, changes none
    "align.pairs.picture_confined",  # what a decoder may ask of the system
    "align.git",
    "align.provenance",  # names code, decides nothing
    "align.config.params",  # reads params.yaml, whose values are tracked themselves
    "align.config.params_file",
    "align.protocols.sql",  # signatures
    "align.protocols.store",
    "align.protocols.vectors",
    "align.services.spark_engine",  # where SQL runs; its decisions equal DuckDB's, row for row (a test)
    "align.services.store",  # where bytes are stored
    "align.services.store_client",
    "align.services.store_mirror",
    "align.services.store_work",
    "align.services.dvc",  # whether a command may write, and what DVC is told
    "align.services.mlflow_address",  # what MLflow is told
    "align.services.signing",  # a signature beside the model
    "align.services.tracking",  # and what it has: registry, tracked_run
    "align.services.live_log",
    "align.services.job",  # which machines train
})  # fmt: skip


#: Stage's module -> modules that it imports and must not depend on. Ingest reads the filter's cuts on texts, so as not
#: to fetch pictures in vain: after another cut, or a new rule, the web must not be fetched again. The comparison of two
#: models (`align evaluate --compare`) is no part of the stage.
UNTRACKED = {
    "align.ingest.ingest": frozenset({"align.config.filter"}),
    "align.evaluate.evaluate": frozenset({"align.evaluate.compare"}),
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
        total.update(f"{name} {_digest_of(path)}\n".encode())
    return total.hexdigest()


def says_something(path: Path) -> bool:
    """Whether a file holds more than its docstring."""
    body = _parse(path).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def _closure(module: str, neutral: frozenset[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting, seen = [module], set(neutral)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file(name)
        if path is None or (neutral and _is_neutral_section(path)):
            continue
        found[name] = path
        waiting += _imports(path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs its package
    return found


def _file(name: str) -> Path | None:
    parts = name.split(".")[1:]
    module, package = _ROOT.joinpath(*parts).with_suffix(".py"), _ROOT.joinpath(*parts, "__init__.py")
    return package if package.is_file() else module if parts and module.is_file() else None


@cache
def _imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "align":
            found += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "align"]
    return found


@cache
def _is_neutral_section(path: Path) -> bool:
    """Whether a module of `align.config` holds a section that changes no bytes."""
    return path.parent.name == "config" and any(
        isinstance(node, ast.AnnAssign)
        and ast.unparse(node.target) == "changes_bytes"
        and isinstance(node.value, ast.Constant)
        and node.value.value is False
        for node in ast.walk(_parse(path))
    )


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _digest_of(path: Path) -> str:
    """Hex sha256 of a module without comments, docstrings and progress lines."""
    tree = _WithoutWords().visit(ast.parse(path.read_text(encoding="utf-8")))
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


class _WithoutWords(ast.NodeTransformer):
    """Drops strings that stand alone (docstrings), calls of `say`, and the words that `track` shows."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        value = node.value
        alone = isinstance(value, ast.Constant) and isinstance(value.value, str)
        said = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "say"
        return ast.Pass() if alone or said else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "track":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "what"]
        return self.generic_visit(node)
