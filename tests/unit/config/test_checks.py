"""The whole of params is checked at the start of every command, whichever sections the command itself reads."""

import pytest

from align.cli import main
from align.config.checks import require_valid
from align.errors import ConfigError
from align.filter.rules import RULES
from align.verbs import VERBS
from tests.support.params import PARAMS_FILE, load_params


def _refusal(*overrides):
    with pytest.raises(ConfigError) as error:
        require_valid(load_params(PARAMS_FILE, overrides), RULES)
    return str(error.value)


@pytest.mark.parametrize("verb", ["ingest", "search", "promote"])
@pytest.mark.parametrize(("override", "named"), [
    ("pretrain.num_steps=abc", "'pretrain.num_steps' = 'abc'"), ("shard.image_px=64", "shard.image_px 64 is below"),
])  # fmt: skip
def test_a_value_of_another_stage_is_refused_before_anything_is_read(
    verb, override, named, tmp_path, monkeypatch, capsys
):
    (tmp_path / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    monkeypatch.chdir(tmp_path)
    words = ["a text"] if verb == "search" else []
    assert main([verb, *words, "--set", override]) == 1
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(("overrides", "message"), [
    (["model.resize_px=48"], "image_px 64 is larger than resize_px 48"),
    (["pretrain.crop_scale=[1.2,0.8]"], "crop_scale [1.2, 0.8]: the smallest comes first"),
    (["pretrain.crop_scale=[0.005,1]"], "crop_scale.0' = 0.005: Input should be greater than or equal to 0.1"),
    (["pretrain.image_px=80"], "shard.image_px 72 is below the 90 px of pretrain.image_px"),
    (["pretrain.image_px=80", "pretrain.resize_px=72"], "pretrain.image_px 80 is larger than resize_px 72"),
    (["pretrain.batch_size=288", "pretrain.num_processes=4"], "num_processes 4 x model.batch_norm_group 16"),
    (["cluster.num_nodes=3", "cluster.rendezvous=a:1"], "cluster.num_nodes 3 x model.batch_norm_group 16"),
    (["finetune.batch_size=250"], "finetune.batch_size 250 must be a multiple of model.batch_norm_group 16"),
    (["pretrain.micro_batch=24"], "pretrain.micro_batch 24 must be a multiple of model.batch_norm_group 16"),
    (["pretrain.shard_weights=node"], "'pretrain.shard_weights' = 'node'"),
    (
        ["pretrain.precision=float16", "pretrain.shard_weights=true", "pretrain.optimiser=lamb"],
        "pretrain.precision: float16 needs whole gradients, so pretrain.shard_weights false",
    ),
    (["model.logit_bias_init=-10.0"], "pretrain.loss align and model.logit_bias_init -10.0 do not go together"),
    (["promote.metrics=[concepts/recall@10]"], "promote.metrics: 'concepts/recall@10' is measured for no set"),
    (["promote.metrics=[test/mean_recall]", "evaluate.max_test_images=0"], "evaluate.max_test_images 0"),
    (["pretrain.best_metric=val/recall@10"], "'pretrain.best_metric' = 'val/recall@10': training measures no such"),
    (["validate.dropped_share.text_too_long=[1.0, 0.0]"], "'validate.dropped_share.text_too_long' = [1.0, 0.0]"),
    (["validate.min_evaluation_sets=-1"], "'validate.min_evaluation_sets' = -1"),
    (
        ["filter.near_duplicate_embedder={path: a.bin, sha256: " + "a" * 64 + "}"],
        "near_duplicate_embedder.path: a.bin: expected .onnx",
    ),
    (["filter.nsfw_model={path: a.bin, sha256: " + "a" * 64 + "}"], "nsfw_model.path: a.bin: expected .onnx"),
    (
        ["store.work=s3://bucket/work", "store.objects=objects"],
        "store.objects: objects: machines that share only store.work",
    ),
    (["store.work=s3://bucket/work"], "store.objects: None: machines that share only store.work"),
])  # fmt: skip
def test_values_that_contradict_each_other_are_named(overrides, message):
    assert message in _refusal(*overrides)


def test_every_band_has_a_reason(tmp_path):
    text = PARAMS_FILE.read_text()
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("    text_too_long:", "    text_to_long:"))
    with pytest.raises(ConfigError, match=r"'text_to_long' is not a reason of a rule; did you mean text_too_long\?"):
        require_valid(load_params(file), RULES)
    file.write_text("".join(line for line in text.splitlines(True) if "    text_too_long:" not in line))
    require_valid(load_params(file), RULES)


def test_the_first_is_told_whole_and_the_others_are_counted_and_named():
    said = _refusal("pretrain.num_steps=abc", "filter.min_words=0", "shard.image_px=64")
    assert "'filter.min_words' = 0" in said  # in the order of params.yaml
    assert said.endswith("(2 more wrong: pretrain.num_steps, shard.image_px)")


def test_sections_that_a_file_lacks_are_left_to_the_command_that_needs_them(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("search: {text_weight: 2.0, num_results: 10}\n")
    require_valid(load_params(file), RULES)


def test_an_unknown_section_is_an_error_that_names_the_nearest(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("serach: {text_weight: 2.0, num_results: 10}\n")
    with pytest.raises(ConfigError, match=r"unknown section 'serach'; did you mean search\?"):
        require_valid(load_params(file), RULES)


def test_no_verb_starts_with_a_wrong_value(tmp_path, capsys):
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS_FILE.read_text().replace("num_steps: 600", "num_steps: many"))
    needs = {
        "export": ["--format", "onnx", "--out", "x"], "import_model": ["--from", "x", "--out", "y"],
        "trace": ["x"], "diff": ["x"],
    }  # fmt: skip
    for verb in VERBS.keys() - {"run", "plan", "register"}:  # whose values the flow checks, once a run
        try:
            assert main([verb, "--params", str(file), *needs.get(verb, [])]) == 1, verb
        except SystemExit:
            continue  # the usage of a verb that this test need not know
        assert "'pretrain.num_steps' = 'many'" in capsys.readouterr().err, verb
