"""The JSON Schema of every parameter: from the sections and params.yaml, against the values that are there."""

import jsonschema
import pytest

from align.config import load_params
from align.config.sections import SECTIONS, parameter_schemas
from tests.support import ROOT

SCHEMAS = parameter_schemas(ROOT / "params.yaml")


def value_of(values, key):
    node = values
    for part in key.split("."):
        node = node[part]
    return node


def test_every_parameter_has_a_schema_with_words_and_its_value_is_valid():
    values = load_params(ROOT / "params.yaml").values
    assert {f"{name}.{key}" for name, section in values.items() for key in section} <= SCHEMAS.keys()
    for key, schema in SCHEMAS.items():
        assert schema["description"], key
        assert schema.keys() > {"description"}, f"{key} has no type"
        jsonschema.validate(value_of(values, key), schema)


def test_every_field_of_a_section_is_among_them():
    names = {
        f"{cls.section}.{field.alias or name}" for cls in SECTIONS.values() for name, field in cls.model_fields.items()
    }
    assert names <= SCHEMAS.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filter.min_words", 0),
        ("promote.margin", "much"),
        ("model.image_tower", "B9"),
        ("model.image_tower.width_coefficient", 0),
        ("validate.dropped_share.image_nsfw", [0.0, 1.5]),
        ("finetune.batch_size", 0),  # inherited from pretrain
        ("ingest.columns.url", 3),
        ("cluster.rendezvous", "host"),
    ],
)
def test_bounds_are_those_of_the_section(key, value):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, SCHEMAS[key])


def test_words_are_the_comments(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(
        "filter:\n  min_words: 3 # paper 3\nvalidate:\n  dropped_share: # by reason\n    image_nsfw: [0.0, 0.02]\n"
        "    image_missing: [0.0, 0.1] # dead links\npretrain: {seed: 0}\nfinetune:\n  num_steps: 60 # few\n"
        "mine: {x: 1}\n"
    )
    words = {key: schema["description"] for key, schema in parameter_schemas(file).items()}
    assert words == {
        "filter.min_words": "paper 3",
        "validate.dropped_share": "by reason",
        "validate.dropped_share.image_nsfw": "by reason",  # of its mapping
        "validate.dropped_share.image_missing": "dead links",
        "pretrain.seed": "pretrain",
        "finetune.seed": "finetune",  # inherited
        "finetune.num_steps": "few",
    }
