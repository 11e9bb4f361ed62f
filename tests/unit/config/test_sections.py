"""The list of all sections, against params.yaml and the modules that define them."""

import ast
from pathlib import Path

import pytest

from align.config import load_params
from align.config.params import Section
from align.config.sections import SECTIONS, changing_bytes
from tests.support import ROOT
from tests.support.params import PARAMS_FILE


def test_every_section_of_params_yaml_has_a_class_and_every_class_a_section():
    params = load_params(ROOT / "params.yaml")
    assert set(SECTIONS) == set(params.values)
    assert all(isinstance(params.section(cls), cls) for cls in SECTIONS.values())


def keys(values, prefix=""):
    """Every key of a params file, such as `filter.min_words`."""
    found = {f"{prefix}{name}" for name in values}
    return found.union(*(keys(value, f"{prefix}{name}.") for name, value in values.items() if isinstance(value, dict)))


def test_the_values_of_tests_have_the_keys_of_params_yaml():
    theirs, ours = (load_params(file).values for file in (ROOT / "params.yaml", PARAMS_FILE))
    for values in (theirs, ours):  # a preset has a name, another tower its sizes
        values["model"] |= {"image_tower": None, "text_tower": None}
        values["filter"] |= {"nsfw_model": None, "near_duplicate_embedder": None, "similarity_model": None}
    assert keys(theirs) == keys(ours), "add the key to tests/support/params.yaml, with the value that tests are to use"


def test_tests_read_their_own_values():
    """A user's values must fail no test: `load_params` is that of tests.support.params, except where it is tested."""
    names = (
        "unit/config/test_params.py", "unit/config/test_paths.py", "unit/services/test_dvc.py", "support/params.py",
    )  # fmt: skip
    exempt = {Path(__file__), *(ROOT / "tests" / name for name in names)}
    for file in sorted({*(ROOT / "tests").rglob("*.py")} - exempt):
        text = file.read_text("utf-8")
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        ours = [
            node.lineno
            for node in imports
            if node.module in ("align.config", "align.config.params")
            and "load_params" in {name.name for name in node.names}
        ]
        assert not ours and 'ROOT / "params.yaml"' not in text, file


def test_every_section_class_is_listed():
    files = (ROOT / "align" / "config").glob("*.py")
    defined = sum(file.read_text("utf-8").count("section: ClassVar[str] =") for file in files)
    assert defined == len(SECTIONS) and all(issubclass(cls, Section) for cls in SECTIONS.values())


@pytest.mark.parametrize("cls", SECTIONS.values())
def test_a_section_has_no_defaults_and_shares_a_module_only_with_its_like(cls):
    """A module is left out of a stage's digest as a whole if a section in it changes no bytes."""
    assert [name for name, field in cls.model_fields.items() if not field.is_required()] == []
    beside = {other.changes_bytes for other in SECTIONS.values() if other.__module__ == cls.__module__}
    assert beside == {cls.changes_bytes}


def test_where_and_how_fast_change_no_bytes():
    values = {"health": {"price_per_hour": 2.5}, "cluster": {"num_nodes": 2}, "pretrain": {"seed": 0}, "mine": {}}
    assert changing_bytes(values) == {"pretrain": {"seed": 0}}
    neutral = {name for name, cls in SECTIONS.items() if not cls.changes_bytes}
    assert neutral == {"paths", "engine", "store", "health", "cluster", "register", "promote", "serve"}
