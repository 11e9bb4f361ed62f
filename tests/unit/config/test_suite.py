"""A suite is strict YAML 1.2: what is wrong is one line with its key."""

from pathlib import Path

import pytest

from align.config.suite import read_suite
from align.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "infra/suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_suites_are_suites(path):
    assert read_suite(path)


ALL = "[zero_shot, knn, frozen]"
#: Each mapping merges the one before ten times: 10^8 values.
LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{number}: &a{number}\n  <<: [{', '.join([f'*a{number - 1}'] * 10)}]\n" for number in range(1, 9)
)


def entry(**changes):
    values = {"name": "one", "path": "/data", "format": "folder", "tasks": "[zero_shot]"} | changes
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items() if value) + "}"


def test_yaml_1_2_and_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text(f"sets: [{entry(name='no')}]")  # false in YAML 1.1
    (one,) = read_suite(tmp_path / "s.yaml")
    assert (one.name, one.split, one.reference, one.templates) == ("no", "test", "train", None)


@pytest.mark.parametrize(("text", "message"), [
    ("", "s.yaml: : Input should be"),
    ("sets: []", "sets: Tuple should have at least 1 item"),
    (f"sets: [{entry(path='')}]", r"sets\.0\.path: Field required"),
    (f"sets: [{entry(format='imagefolder')}]", r"sets\.0\.format: Input should be 'align', 'webdataset'"),
    (f"sets: [{entry(tasks='[]')}]", r"sets\.0\.tasks: Tuple should have at least 1 item"),
    (f"sets: [{entry(tasks='[knn]')}]", r"one: knn is measured beside zero_shot; tasks: \[zero_shot, knn\]"),
    (f"sets: [{entry(tasks='[multi30k]')}]", r"one: multi30k is measured beside retrieval"),
    (f"sets: [{entry(tasks='[retrieval]', among='present')}]", "one: among is a choice of classes"),
    (f"sets: [{entry(tasks='[zero_shot]', frozen='{seed: 5}')}]", "one: settings of frozen, which"),
    (f"sets: [{entry(tasks=ALL, frozen='{seed: -1}')}]", r"sets\.0\.frozen\.seed: Input should"),
    (f"sets: [{entry(tasks=ALL, frozen='{seeds: 5}')}]", r"frozen\.seeds: Extra inputs"),
    (f"sets: [{entry(tasks=ALL, frozen='{preset: large}')}]", "Input should be 'paper' or 'small'"),
    (f"sets: [{entry(format='coco', tasks='[retrieval, cxc]')}]", "one: the task cxc and the key ratings"),
    (f"sets: [{entry(format='coco', tasks='[retrieval]', ratings='/cxc')}]", "one: the task cxc and the key ratings"),
    (f"sets: [{entry(texts_per_image='5')}]", "one: texts_per_image is of sets of captions"),
    (f"sets: [{entry(ratings='/cxc')}]", "one: ratings name items by COCO's ids"),
    (f"sets: [{entry(columns='{text: a}')}]", "one: only a table has columns to name"),
    (f"sets: [{entry(format='table', columns='{url: a}')}]", r"columns\.url.*: Input should be"),
    (f"sets: [{entry(format='winoground')}]", r"sets\.0\.format: Input should be 'align', 'webdataset'"),
    (f"sets: [{entry(captions='[a.de]')}]", "one: the format multi30k and the key captions"),
    (f"sets: [{entry(format='multi30k', tasks='[retrieval]')}]", "one: the format multi30k and the key captions"),
    (f"sets: [{entry(tasks='[retrieval, knn]')}]", "one: retrieval needs captions"),
    (f"sets: [{entry(format='coco')}]", "one: format coco has captions and no classes"),
    (f"sets: [{entry(splitt='test')}]", r"sets\.0\.splitt: Extra inputs are not permitted"),
    (f"sets: [{entry(split='1')}]", r"sets\.0\.split: Input should be a valid string"),
    (f"sets: [{entry(name='test')}]", "test: a set of this name is made by the pipeline"),
    (f"sets: [{entry(name='a/b')}]", r"sets\.0\.name: String should match pattern"),
    (f"sets: [{entry(templates='[a photo]')}]", "template 'a photo' has no {} for the class"),
    (f"sets: [{entry()}, {entry()}]", "2 sets have the name one"),
    ("sets: [", "line 1: not valid YAML: "),
    (LAUGHS, "more than 100,000 values, with each alias written out"),
    ("a: &a [*a]", "more than 100,000 values, with each alias written out"),
    ("sets: " + "[" * 10_000, "maximum depth"),
    ("sets: 1" + "0" * 5_000, "line 1: a number of 5,001 digits"),
    ("sets: 0x" + "f" * 5_000, "line 1: a number of 5,002 digits"),
    ('sets: "\\ud800"', "line 1: half of a character"),
    ("sets: 2026-99-99", "month must be in 1..12"),
    ("sets: # " + "a" * (1 << 20), "longer than 1,048,576 characters"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        read_suite(tmp_path / "s.yaml")
    assert "\n" not in str(raised.value)


def test_a_suite_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"s\.yaml: no such file; give a suite"):
        read_suite(tmp_path / "s.yaml")
