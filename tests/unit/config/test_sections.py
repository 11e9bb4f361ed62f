"""The list of all sections against params.yaml and against the modules that define them."""

from align.config import load_params
from align.config.params import Section
from align.config.sections import SECTIONS, changing_bytes
from tests.support import ROOT


def test_every_section_of_params_yaml_has_a_class_and_every_class_a_section() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(SECTIONS) == set(params.values)
    assert all(isinstance(params.section(cls), cls) for cls in SECTIONS.values())


def test_every_section_class_is_listed() -> None:
    files = (ROOT / "align" / "config").glob("*.py")
    defined = {file.stem for file in files if "section: ClassVar[str] =" in file.read_text("utf-8")}
    assert defined == {cls.__module__.rpartition(".")[2] for cls in SECTIONS.values()}
    assert all(issubclass(cls, Section) for cls in SECTIONS.values())


def test_where_and_how_fast_change_no_bytes() -> None:
    values = {"health": {"price_per_hour": 2.5}, "cluster": {"num_nodes": 2}, "pretrain": {"seed": 0}, "mine": {}}
    assert changing_bytes(values) == {"pretrain": {"seed": 0}}
    neutral = {name for name, cls in SECTIONS.items() if not cls.changes_bytes}
    assert neutral == {"paths", "engine", "store", "health", "cluster", "embed", "register", "promote"}
