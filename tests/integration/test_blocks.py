"""Whose size is a constant, a loop over blocks: `small_blocks` must find that constant by its name."""

import ast
import re

import pytest

from tests.support import ROOT
from tests.support.small_blocks import NAME, modules

#: Function -> position and keyword of the size of its blocks.
SIZED = {
    "range": (2, None), "batched": (1, None), "split": (1, None), "array_split": (1, None), "parts": (0, None),
    "iter_batches": (0, "batch_size"), "to_batches": (0, "max_chunksize"), "fetchmany": (0, None),
    "write_table": (99, "row_group_size"),
}  # fmt: skip
MAY_HAVE_BLOCKS = re.compile(rf"\b(?:{'|'.join(SIZED)}|islice)\(")


def sizes(source):
    """(line, expression) of the size of each block that a loop takes."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.Module):
            local = {}
            for node in walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    local[node.targets[0].id] = node.value
            for node in walk(function):
                for size in sizes_of(node):
                    yield node.lineno, local.get(size.id, size) if isinstance(size, ast.Name) else size


def walk(function):
    """The nodes of a function, without those of the functions in it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def calls(node):
    return [one for one in ast.walk(node) if isinstance(one, ast.Call)]


def sizes_of(node):
    if isinstance(node, ast.Call):
        position, keyword = SIZED.get(called(node), (99, None))
        yield from [
            *node.args[position : position + 1],
            *(one.value for one in node.keywords if keyword and one.arg == keyword),
        ]
    if isinstance(node, ast.While):  # while block := list(islice(rest, SIZE))
        yield from (one.args[1] for one in calls(node.test) if called(one) == "islice")
    if isinstance(node, ast.Lambda):  # iter(lambda: list(islice(rest, SIZE)), [])
        yield from (one.args[1] for one in calls(node.body) if called(one) == "islice")


def called(node):
    if not isinstance(node, ast.Call):
        return None
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)


def misnamed(source):
    if not MAY_HAVE_BLOCKS.search(source):
        return
    for line, size in sizes(source):
        names = (getattr(each, "id", None) or getattr(each, "attr", "") for each in ast.walk(size))
        constants = [name for name in names if name.isupper() and not name.endswith("_BYTES")]
        if (isinstance(size, ast.Constant) and size.value > 16) or any(not NAME.fullmatch(name) for name in constants):
            yield line, ast.unparse(size)


def test_the_sizes_of_blocks_are_called_at_once():
    files = [*(ROOT / "align").rglob("*.py")]
    wrong = [(path.name, *one) for path in files for one in misnamed(path.read_text("utf-8"))]
    assert wrong == [], "call the size ..._AT_ONCE: then `small_blocks` finds it"


@pytest.mark.parametrize("source", [
    "for start in range(0, count, _BLOCK): pass", "while some := list(islice(rest, CHUNK)): pass",
    "def f():\n size = max(1, module.BLOCK // count)\n return [x for x in range(0, n, size)]",
    "windows = iter(lambda: list(islice(rest, _WINDOW)), [])", "file.iter_batches(batch_size=64)",
])  # fmt: skip
def test_a_size_of_another_name_is_found(source):
    assert list(misnamed(source))
    assert not list(misnamed(source.replace("64", "3").replace("_BLOCK", "_ROWS_AT_ONCE")
                             .replace("CHUNK", "TEXTS_AT_ONCE").replace("BLOCK", "ROWS_AT_ONCE")
                             .replace("_WINDOW", "_AT_ONCE")))  # fmt: skip


def test_every_size_is_3_where_it_is_used(small_blocks):
    of_modules = {(module.__name__, name): getattr(module, name) for module in modules() for name in vars(module)
                  if NAME.fullmatch(name)}  # fmt: skip
    assert set(of_modules.values()) == {3} and of_modules.keys() == set(small_blocks)
    assert ("align.filter.decide", "ROWS_AT_ONCE") in small_blocks, "imported by its name"
