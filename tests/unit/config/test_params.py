"""params.yaml: YAML 1.2, values from the command line, and what fine-tuning inherits."""

from typing import ClassVar

import pytest

from align.config import Section, load_params
from align.config.recipe import FinetuneConfig
from align.errors import ConfigError
from tests.support import ROOT
from tests.support.params import PARAMS_FILE


class Example(Section):
    section: ClassVar[str] = "example"

    rate: float
    count: int
    name: str | None


@pytest.fixture
def params_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("example: {rate: 1e-3, count: 3, name: null}\n")
    return path


def test_yaml_1_2_reads_an_exponent_without_a_dot_as_a_float(params_file):
    assert load_params(params_file).section(Example).rate == 0.001


def test_an_override_replaces_one_value(params_file):
    section = load_params(params_file, ["example.count=7", "example.name=two words"]).section(Example)
    assert (section.rate, section.count, section.name) == (0.001, 7, "two words")


@pytest.mark.parametrize("value", [
    "http://me:secret@host",
    "[a, {b: 'see https://TOKEN@host'}]",
    "'https://bucket.s3.amazonaws.com/a.warc.gz?X-Amz-Credential=TOKEN&X-Amz-Signature=secret'",
    "'https://h/a?sv=2024&sr=c&sig=secret%3D'",
    "'https://storage.googleapis.com/b/a?GoogleAccessId=TOKEN&Signature=secret'",
    "'https://h/a?Expires=1&access_token=TOKEN'",
])  # fmt: skip
def test_a_login_in_an_address_is_refused(params_file, value):
    with pytest.raises(ConfigError, match=r"'example.name\S*' holds a login .*infra/env.example") as error:
        load_params(params_file, [f"example.name={value}"])
    assert "secret" not in str(error.value) and "TOKEN" not in str(error.value)
    params_file.write_text(f"example: {{rate: 1e-3, count: 3, name: {value}}}\n")
    with pytest.raises(ConfigError, match="holds a login"):
        load_params(params_file)


def test_an_empty_override_is_null(params_file):
    assert load_params(params_file, ["example.name="]).section(Example).name is None


@pytest.mark.parametrize(("override", "message"), [
    ("exmaple.count=7", "unknown parameter 'exmaple.count'"),
    ("example.count.deep=7", "unknown parameter 'example.count.deep'"),
    ("example.count=[", "not valid YAML"),
    ("example.count=1" + "0" * 5000, "not valid YAML"),
    ("example.count=0x" + "f" * 5000, "not valid YAML"),
    ("example.count=2026-99-99", "not valid YAML"),
    ("example.count=" + "[" * 10_000, "not valid YAML"),
    ('example.name="\\ud800"', "not valid YAML"),
    ("example.name=caf\udce9", "the value is not UTF-8; rename a file or folder of such a name"),
])  # fmt: skip
def test_a_bad_override_is_an_error_that_names_the_key(params_file, override, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as error:
        load_params(params_file, [override])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(("text", "message"), [
    ("example: {rate: 1, count: 1.5, name: a}", r"'example\.count' = 1\.5"),
    ("example: {rate: 1, count: 3}", r"'example\.name' is missing"),
    ("example: {rate: 1, count: 3, name: a, extra: 1}", r"unknown parameter 'example\.extra'"),
    ("other: {}", "section 'example' is missing"),
])  # fmt: skip
def test_an_ill_typed_section_is_an_error_that_names_the_key(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(path).section(Example)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "expected sections")])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(path)


def test_outside_a_checkout_the_packaged_values_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_params().values == load_params(ROOT / "params.yaml").values


def test_sections_are_frozen(params_file):
    section = load_params(params_file).section(Example)
    with pytest.raises(ValueError, match="frozen"):
        section.count = 4  # type: ignore[misc]


INHERITING = """
pretrain: {seed: 0, flip: true, micro_batch: 64}
finetune: {seed: 1}
"""


@pytest.fixture
def inheriting_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(INHERITING)
    return path


@pytest.mark.parametrize(("overrides", "expected"), [
    ([], {"seed": 1, "flip": True, "micro_batch": 64}),
    (["finetune.flip=false"], {"seed": 1, "flip": False, "micro_batch": 64}),
    (["finetune.micro_batch="], {"seed": 1, "flip": True, "micro_batch": None}),
    (["pretrain.flip=false", "pretrain.seed=5"], {"seed": 1, "flip": False, "micro_batch": 64}),
    (["finetune.flip=true", "pretrain.flip=false"], {"seed": 1, "flip": True, "micro_batch": 64}),
])  # fmt: skip
def test_finetune_inherits_what_it_does_not_set(inheriting_file, overrides, expected):
    assert load_params(inheriting_file, overrides).values["finetune"] == expected


def test_an_override_of_finetune_leaves_pretrain_alone(inheriting_file):
    values = load_params(inheriting_file, ["finetune.flip=false"]).values
    assert values["pretrain"] == {"seed": 0, "flip": True, "micro_batch": 64}


def test_a_key_that_neither_section_has_is_an_error(inheriting_file):
    with pytest.raises(ConfigError, match=r"unknown parameter 'finetune\.flop'"):
        load_params(inheriting_file, ["finetune.flop=1"])


def test_only_finetune_inherits(inheriting_file):
    inheriting_file.write_text(INHERITING.replace("seed: 0, ", ""))
    with pytest.raises(ConfigError, match=r"unknown parameter 'pretrain\.seed'"):
        load_params(inheriting_file, ["pretrain.seed=3"])


def test_the_file_of_the_project_makes_a_whole_recipe_for_fine_tuning():
    params = load_params(PARAMS_FILE, ["finetune.precision=float32"])
    finetune = params.section(FinetuneConfig)
    assert (finetune.num_steps, finetune.precision) == (30, "float32")
    assert params.values["finetune"].keys() == params.values["pretrain"].keys() | {"from"}  # what `align register` logs
