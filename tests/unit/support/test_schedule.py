"""Which tests run first and together (tests/support/schedule.py)."""

from types import SimpleNamespace

import pytest

from tests.support import ROOT, durations, schedule


def item(file, fixtures=(), marks=()):
    return SimpleNamespace(
        nodeid=f"{file}::test_it", path=ROOT / file, fixturenames=fixtures,
        get_closest_marker=lambda name: name if name in marks else None,
    )  # fmt: skip


def ordered(*items):
    items = [*items]
    hook = schedule.pytest_collection_modifyitems(items)
    next(hook)
    with pytest.raises(StopIteration):
        next(hook)
    return [one.path.name for one in items]


def test_the_stack_s_first_then_what_takes_longest(monkeypatch):
    taken = {"a.py": [1, 2], "b.py": [1, 3], "b.py kill": [9, 9], "tests/integration/test_form.py": [8, 8]}
    monkeypatch.setattr(durations, "committed", lambda: {"files": taken})
    stack = {"fixtures": ["shared_stack"], "marks": ["shared_stack"]}
    form, first = (item(f"tests/integration/test_{name}.py", **stack) for name in ("form", "local_stack"))
    plain = [item("a.py"), item("new.py"), item("b.py"), form, first]
    assert ordered(*plain) == ["test_local_stack.py", "test_form.py", "b.py", "a.py", "new.py"]
    assert ordered(item("a.py"), item("b.py"), item("c.py", marks=["kill"])) == ["b.py", "a.py", "c.py"]


def test_a_test_that_takes_the_stack_is_marked():
    """By itself or through another fixture: pytest names both kinds."""
    with pytest.raises(pytest.UsageError, match=r"test_x\.py::test_it: its file needs"):
        ordered(item("test_x.py", ["tmp_path", "shared_stack"]))


def test_the_files_that_share_a_stack_have_one_scope():
    assert schedule.scope("tests/integration/test_flows.py") == schedule.scope("tests/integration/test_form.py")
    assert schedule.scope("tests/integration/test_survival.py") == "tests/integration/test_survival.py"
