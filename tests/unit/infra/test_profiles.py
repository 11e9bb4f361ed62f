"""Profiles: values for one kind of data, as differences from params.yaml."""

import pytest

from align.config.checks import wrong_parameters
from align.config.filter import FilterConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.model import ModelConfig
from align.config.params import DEMO, PROFILES, profile_names, profile_overrides
from align.config.recipe import FinetuneConfig, PretrainConfig
from align.config.shard import ShardConfig
from align.config.validate import ValidateConfig
from align.errors import ConfigError
from align.filter.rules import RULES
from tests.support import ROOT
from tests.support.params import load_params

NAMES = sorted(path.stem for path in (ROOT / PROFILES).glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_each_profile_changes_values_that_exist(name):
    profile = profile_overrides(name)
    params, plain = load_params(overrides=profile), load_params()
    assert wrong_parameters(params, RULES) == {}  # whole, and section against section
    for override in profile:  # a value that equals the one in params.yaml says nothing
        assert load_params(overrides=[override]).values != plain.values, override


def test_the_demo_is_no_file_and_changes_nothing():
    assert profile_overrides(DEMO) == [] and DEMO not in profile_names()
    assert set(profile_names()) >= {"cc3m", "coyo", "paper", "photographs"}


@pytest.mark.parametrize(("profile", "towers", "width", "batch_size", "num_steps", "learning_rate"), [
    ("paper", ("L2", "Large"), 1376, 16384, 1_200_000, 1e-3),
    ("ablation", ("B7", "Base"), 640, 16384, 1_000_000, 1e-3),
    ("coyo", ("B7", "Base"), 640, 65536, 300_000, 2e-3),
    ("cc3m", ("B3", "Mini"), 640, 16384, 100_000, 5e-3),
])  # fmt: skip
def test_published_recipes(profile, towers, width, batch_size, num_steps, learning_rate):
    params = load_params(overrides=profile_overrides(profile))
    model, recipe, later = (params.section(of) for of in (ModelConfig, PretrainConfig, FinetuneConfig))
    assert (model.image_tower, model.text_tower, model.embed_width, model.image_px) == (*towers, width, 289)
    assert (recipe.batch_size, recipe.num_steps, recipe.learning_rate) == (batch_size, num_steps, learning_rate)
    assert (recipe.optimiser, recipe.schedule, recipe.warmup_steps, recipe.weight_decay) == (
        "lamb", "linear", 10_000, 1e-5,
    )  # fmt: skip
    assert (recipe.label_smoothing, recipe.loss, model.temperature_init, model.batch_norm_group) == (
        0.1, "align", 1.0, 16,
    )  # fmt: skip
    assert (recipe.text_learning_rate_scale, recipe.vector_learning_rate_scale, recipe.phrase_dropout) == (
        1.0, 1.0, 0.0,
    )  # fmt: skip
    assert (recipe.text_init_std, recipe.position_init_scale) == (0.02, 1.0)
    assert (later.batch_size, later.learning_rate, later.warmup_steps, later.image_px) == (2048, 1e-5, 0, None)


def test_a_crawl_may_lose_more_than_the_demo():
    bands = load_params(overrides=profile_overrides("crawl")).section(ValidateConfig)
    demo = load_params().section(ValidateConfig)
    assert bands.min_success_share < demo.min_success_share
    assert bands.keep_rate[0] < demo.keep_rate[0]
    assert bands.dropped_share.keys() == demo.dropped_share.keys()
    assert bands.dropped_share["opted_out"] == demo.dropped_share["opted_out"]


def test_all_languages_have_more_pieces_and_no_rule_of_one_language():
    params = load_params(overrides=profile_overrides("multilingual"))
    assert params.section(FitTokenizerConfig).vocab_size == 250_000
    assert params.section(FilterConfig).languages is None
    assert params.section(PretrainConfig).sentence_share == 0


def test_a_file_elsewhere_and_what_set_changes_after_it(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("filter: {min_words: 4, languages: [en, de]}\nvalidate: {keep_rate: [0.1, 0.9]}\n")
    overrides = [*profile_overrides(str(file)), "filter.min_words=5"]
    config = load_params(overrides=overrides).section(FilterConfig)
    assert (config.min_words, config.languages) == (5, ("en", "de"))
    assert profile_overrides(None) == []


@pytest.mark.parametrize(("content", "message"), [
    ("filter: [", "not valid YAML"),
    ("- a\n", "expected sections at the top level"),
    ("filter: 3\n", "expected sections at the top level"),
])  # fmt: skip
def test_a_profile_that_is_none_is_refused(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_params(overrides=profile_overrides(str(file)))


def test_outside_a_checkout_those_of_the_package_are_used(tmp_path, monkeypatch):
    inside = profile_overrides("crawl")
    monkeypatch.chdir(tmp_path)
    assert profile_overrides("crawl") == inside


def test_the_photographs_cut_is_what_their_shards_need():
    params = load_params(overrides=profile_overrides("photographs"))
    assert params.section(FilterConfig).short_side_above_px == params.section(ShardConfig).image_px - 1
