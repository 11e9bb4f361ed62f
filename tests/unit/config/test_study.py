"""Studies: what they change, and one clear line for each that is wrong."""

import json
from pathlib import Path

import pytest

from align.config.checks import require_valid
from align.config.params import profile_overrides
from align.config.study import read_study
from align.errors import ConfigError
from align.filter.rules import RULES
from tests.support import ROOT
from tests.support.params import load_params

GOOD = """\
name: small
primary: [concepts/mean_recall]
seeds: [0, 3]
set: {pretrain.num_steps: 10}
arms:
  - name: base
  - name: wide
    paper: wider is better
    expected: better
    set: {pretrain.num_steps: 20, model.embed_width: 32}
    profiles: {cc3m: {model.embed_width: 64}}
"""


def written(folder, text):
    file = folder / "study.yaml"
    file.write_text(text)
    return file


def test_an_arm_changes_more_than_the_study_and_a_profile_counts_instead(tmp_path):
    study = read_study(written(tmp_path, GOOD))
    base, wide = study.arms
    assert [(arm.name, seed) for arm, seed in study.cells()] == [("base", 0), ("wide", 0), ("base", 3), ("wide", 3)]
    assert study.values_of(base, 3, "demo") == {"pretrain.num_steps": 10, "pretrain.seed": 3}
    assert study.values_of(wide, 0, "demo") == {"pretrain.num_steps": 20, "model.embed_width": 32, "pretrain.seed": 0}
    assert study.values_of(wide, 0, "cc3m") == {"pretrain.num_steps": 10, "model.embed_width": 64, "pretrain.seed": 0}


@pytest.mark.parametrize(("old", "new", "line"), [
    ("seeds:", "seed:", "seed: Extra inputs are not permitted"),
    ("    set: {pretrain", "    sett: {pretrain", "arms.1.sett: Extra inputs are not permitted"),
    ("name: wide", "name: base", "arms: 2 are called base; each run needs a name of its own"),
    ("[0, 3]", "[3, 3]", "seeds: 2 are called 3; each run needs a name of its own"),
    ("[0, 3]", "[]", "seeds: Tuple should have at least 1 item"),
    ("name: wide", "name: a b", "arms.1.name: String should match pattern"),
    ("expected: better", "expected: best", "arms.1.expected: Input should be 'better' or 'worse'"),
    ("primary: [concepts/mean_recall]", "primary: []", "primary: Tuple should have at least 1 item"),
    (GOOD, "name: [", "line 1: not valid YAML: "),
    (GOOD, "- a", "Input should be a valid dictionary"),
])  # fmt: skip
def test_a_wrong_study_is_one_clear_line(tmp_path, old, new, line):
    assert old in GOOD
    file = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and line in message and "\n" not in message
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; give a study, such as those in infra/studies"):
        read_study(tmp_path / "none.yaml")


@pytest.mark.parametrize("profile", ["demo", "cc3m"])
def test_the_arms_of_the_papers_study_are_valid(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study(Path("infra/studies/paper.yaml"))
    assert len(study.arms) == 10
    for arm in study.arms:
        chosen = [f"{key}={json.dumps(value)}" for key, value in study.values_of(arm, 0, profile).items()]
        params = load_params(None, [*profile_overrides(profile), *chosen])
        require_valid(params, RULES)
        assert study.of(profile)["finetune.num_steps"] == params.values["finetune"]["num_steps"] == 0
