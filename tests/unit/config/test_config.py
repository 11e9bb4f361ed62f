from pathlib import Path
from typing import ClassVar

import pytest

from align.config import Section, load_params
from align.config.paths import PathsConfig
from align.errors import ConfigError


class Example(Section):
    section: ClassVar[str] = "example"

    rate: float
    count: int
    name: str | None


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text("example: {rate: 1e-3, count: 3, name: null}\n")
    return path


def test_yaml_1_2_reads_an_exponent_without_a_dot_as_a_float(params_file: Path) -> None:
    assert load_params(params_file).section(Example).rate == 0.001


def test_an_override_replaces_one_value(params_file: Path) -> None:
    section = load_params(params_file, ["example.count=7", "example.name=two words"]).section(Example)
    assert (section.rate, section.count, section.name) == (0.001, 7, "two words")


def test_an_empty_override_is_null(params_file: Path) -> None:
    assert load_params(params_file, ["example.name="]).section(Example).name is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("example.cuont=7", "unknown parameter 'example.cuont'"),
        ("exmaple.count=7", "unknown parameter 'exmaple.count'"),
        ("example.count.deep=7", "unknown parameter 'example.count.deep'"),
        ("example.count", "expected section.key=value"),
        ("count=7", "expected section.key=value"),
        ("example.count=[", "not valid YAML"),
    ],
)
def test_a_bad_override_is_an_error_that_names_the_key(params_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_params(params_file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example: {rate: 1, count: three, name: a}", r"'example\.count' = 'three': .*integer"),
        ("example: {rate: 1, count: 1.5, name: a}", r"'example\.count' = 1\.5"),
        ("example: {rate: 1, count: 3}", r"'example\.name' is missing"),
        ("example: {rate: 1, count: 3, name: a, extra: 1}", r"unknown parameter 'example\.extra'"),
        ("other: {}", "section 'example' is missing"),
    ],
)
def test_an_ill_typed_section_is_an_error_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(path).section(Example)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "expected sections")])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such params file"):
        load_params(tmp_path / "none.yaml")


def test_outside_a_checkout_the_packaged_values_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_params().section(PathsConfig).raw == Path("data/raw")


def test_sections_are_frozen(params_file: Path) -> None:
    section = load_params(params_file).section(Example)
    with pytest.raises(ValueError, match="frozen"):
        section.count = 4  # type: ignore[misc]
