"""`make test-changed`: the tests of any tier whose file reads, through whatever it imports, a file that has changed.

A file reads the modules that it imports, at its top or later, and the programs that a text of its names, as after
`-m`. Tests read the modules of the verbs that they call and the conftest.py of their folders, too. Any other file, such
as a table or a page, is read by the files that have its name in them; one that nobody names concerns all tests. What
only a process of a process reads is not seen: `make test` runs before a merge all the same.

tests/conftest.py registers this module with pytest.
"""

import ast
import collections
import re
from pathlib import PurePath

import pytest

from align.services.git import git
from align.verbs import STAGES, VERBS
from tests.support import ROOT

#: The folders of modules.
_CODE = ("align", "benchmarks", "flows", "infra", "tests")
_CONFTEST = "tests/conftest.py"
#: They call each verb's module by its name: only what they import at their top counts.
_ANY_VERB = ("align/cli.py", "align/verbs.py")
#: What nobody imports or names, and no test reads.
_UNREAD = re.compile(r"docs/img/|LICENSE|\.github/")


def pytest_addoption(parser):
    parser.addoption("--changed", metavar="REF", help="only tests that read what differs from where REF was left")


def pytest_configure(config):
    """Finds the files of tests once, for all workers."""
    if hasattr(config, "workerinput"):
        config.changed = config.workerinput["changed"]
    elif config.option.changed:
        config.changed = sorted(readers(changes(config.option.changed), sources()))
    else:
        config.changed = None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["changed"] = node.config.changed


def pytest_collection_modifyitems(config, items):
    """Deselects the tests of other files."""
    if config.changed is not None:
        told = [item for item in items if item.path.relative_to(ROOT).as_posix() in config.changed]
        config.hook.pytest_deselected(items=[item for item in items if item not in told])
        items[:] = told


def changes(ref):
    """The files that differ from where this branch left a branch or commit; committed or not."""
    differ = git(ROOT, "diff", "--name-only", git(ROOT, "merge-base", ref, "HEAD").strip())
    return {*differ.split("\n"), *git(ROOT, "ls-files", "--others", "--exclude-standard").split("\n")} - {""}


def sources():
    """The files of modules, with their texts."""
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", *(f"{name}/*.py" for name in _CODE))
    return {name: (ROOT / name).read_text("utf-8") for name in names.split("\n") if (ROOT / name).is_file()}


def readers(changed, texts):
    """The files of tests that read one of these files.

    Args:
        changed: paths from the root.
        texts: of the files of modules, by path.
    """
    reads = {name: _reads(name, text, texts) for name, text in texts.items()}
    in_tests = {name for name in texts if name.startswith("tests/")}
    shared = _reached({_CONFTEST}, {name: reads[name] & in_tests for name in in_tests})
    for name in in_tests - shared:
        around = {f"{folder}/conftest.py" for folder in PurePath(name).parents}
        reads[name] |= _called(texts[name]) | around & in_tests - shared
    read_by = collections.defaultdict(set)
    for name, others in reads.items():
        for other in others:
            read_by[other].add(name)
    for name in changed - set(texts):
        read_by[name] = {other for other, text in texts.items() if name.rpartition("/")[2] in text}
    tests = {name for name in in_tests if name.rpartition("/")[2].startswith("test_")}
    if changed & shared or any(not read_by[name] and not _UNREAD.match(name) for name in changed - set(texts)):
        return tests
    return tests & _reached(changed, read_by)


def _reached(names, edges):
    found, waiting = set(), [*names]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += edges.get(name, ())
    return found


def _reads(name, text, texts):
    """The files of the modules that a file imports or names, and of the packages around them."""
    modules, programs, tree = set(), set(), ast.parse(text)
    for node in tree.body if name in _ANY_VERB else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            programs.add(node.value)
    modules |= {program for program in programs if "__main__" in texts.get(f"{program.replace('.', '/')}.py", "")}
    found = set()
    for module in modules:
        folders = module.split(".")
        if folders[0] in _CODE:
            for count in range(1, len(folders) + 1):
                path = "/".join(folders[:count])
                found |= {f"{path}.py", f"{path}/__init__.py"}
    return found & set(texts)


def _called(text):
    """The modules of the verbs that a file calls: those that stand alone in a text, or after `align`."""
    verbs = {verb for verb in VERBS if re.search(rf"""["']{verb}["']|\balign {verb}\b""", text)}
    if "dvc repro" in text or "run" in verbs:
        verbs |= set(STAGES)
    return {f"{VERBS[verb].module.replace('.', '/')}.py" for verb in verbs}
