"""Profiles: values for one kind of data, as differences from params.yaml."""

from pathlib import Path

import pytest

from align.config.checks import wrong_parameters
from align.config.filter import FilterConfig
from align.config.profile import DEMO, PROFILES, profile_names, profile_overrides
from align.config.validate import ValidateConfig
from align.errors import ConfigError
from align.filter.rules import RULES
from tests.support import ROOT
from tests.support.params import load_params

NAMES = sorted(path.stem for path in (ROOT / PROFILES).glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_each_profile_changes_values_that_exist(name: str) -> None:
    profile = profile_overrides(name)
    params, plain = load_params(overrides=profile), load_params()
    assert wrong_parameters(params, RULES) == {}  # whole, and section against section
    for override in profile:  # a value that equals the one in params.yaml says nothing
        assert load_params(overrides=[override]).values != plain.values, override


def test_the_demo_is_no_file_and_changes_nothing() -> None:
    assert profile_overrides(DEMO) == [] and DEMO not in profile_names()
    assert set(profile_names()) >= {"cc3m", "coyo", "paper", "photographs"}


def test_the_paper_s_recipe() -> None:
    values = load_params(overrides=profile_overrides("paper")).values
    model, pretrain = values["model"], values["pretrain"]
    assert (model["image_tower"], model["text_tower"], model["image_px"]) == ("B7", "Base", 289)
    assert (pretrain["batch_size"], pretrain["num_steps"], pretrain["learning_rate"]) == (16384, 1_000_000, 1e-3)


def test_a_crawl_may_lose_more_than_the_demo() -> None:
    bands = load_params(overrides=profile_overrides("crawl")).section(ValidateConfig)
    demo = load_params().section(ValidateConfig)
    assert bands.min_success_share < demo.min_success_share
    assert bands.keep_rate[0] < demo.keep_rate[0]
    assert bands.dropped_share.keys() == demo.dropped_share.keys()
    assert bands.dropped_share["opted_out"] == demo.dropped_share["opted_out"]


def test_a_file_elsewhere_and_what_set_changes_after_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("filter: {min_words: 4, languages: [en, de]}\nvalidate: {keep_rate: [0.1, 0.9]}\n")
    overrides = [*profile_overrides(str(file)), "filter.min_words=5"]
    config = load_params(overrides=overrides).section(FilterConfig)
    assert (config.min_words, config.languages) == (5, ("en", "de"))
    assert profile_overrides(None) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filter: [", "not valid YAML"),
        ("- a\n", "expected sections at the top level"),
        ("filter: 3\n", "expected sections at the top level"),
        ("filter: {min_wrods: 4}\n", "unknown parameter 'filter.min_wrods'"),
    ],
)
def test_a_profile_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_params(overrides=profile_overrides(str(file)))


def test_outside_a_checkout_those_of_the_package_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = profile_overrides("crawl")
    monkeypatch.chdir(tmp_path)
    assert profile_overrides("crawl") == inside


def test_a_missing_profile_names_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"--profile laion: no readable file .*: cc3m, coyo, crawl, paper, photographs, url_table"
    ):
        profile_overrides("laion")
