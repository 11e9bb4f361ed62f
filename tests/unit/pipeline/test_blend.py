"""`align blend`: the ends are the models themselves; between them weights are means, and statistics are measured."""

import shutil

import pytest
import torch

from align.cli import build_parser, main
from align.formats.model_folder import read_config, read_weights
from align.model.dual_encoder import load_model, save_model
from align.training.checkpointed import estimate_from_shards
from align.training.stage import train_stage
from tests.support import training_data
from tests.support.params import PARAMS_FILE, sets
from tests.support.training_data import MODEL, plan, pretrain_config


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory):
    """A trained model `a`, and `b`, which trained longer; with the shards."""
    root = tmp_path_factory.mktemp("models")
    data = training_data.write(root)
    for name, steps in (("a", 1), ("b", 2)):
        recipe = pretrain_config(num_steps=steps, warmup_steps=0)
        train_stage(plan(data, root / "ck", recipe), out=root / name, reports=root / "r")
    return root


def blend(models, out, alpha, *more, b="b"):
    where = sets(f"paths.shards={models / 'shards'}")
    words = ["blend", str(models / "a"), str(models / b), "--alpha", alpha, "--out", str(out)]
    return main([*words, "--params", str(PARAMS_FILE), *where, *more])


def test_one_share_is_a_model_folder(models, tmp_path):
    assert blend(models, tmp_path / "out", "0.25") == 0
    a, b, found = (read_weights(folder) for folder in (models / "a", models / "b", tmp_path / "out"))
    again = load_model(tmp_path / "out")
    estimate_from_shards(again, models / "shards", None)
    for name, weight in found.items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(weight, again.state_dict()[name]), name
        else:
            torch.testing.assert_close(weight, 0.75 * a[name] + 0.25 * b[name])
    name = "vision_model.embeddings.batchnorm.running_var"
    assert not torch.allclose(found[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-6)
    config = read_config(tmp_path / "out")
    assert config.chosen is not None and config.chosen["alpha"] == 0.25 and config.stage == "blend"
    assert config.trained_on == read_config(models / "a").trained_on and config.model == MODEL


def test_a_tower_that_is_the_same_in_both_stays_as_it_is(models, tmp_path):
    """As a locked one; so the shards, which are none here, are not read."""
    other, a = load_model(models / "a"), read_weights(models / "a")
    torch.nn.init.ones_(other.text_projection.bias)
    shutil.copytree(models / "a", models / "texts", dirs_exist_ok=True)
    save_model(other, models / "texts", stage="finetune")
    assert blend(models, tmp_path / "out", "0.5", *sets(f"paths.shards={tmp_path}"), b="texts") == 0
    found = read_weights(tmp_path / "out")
    for name in (name for name in a if name.startswith("vision_model.")):
        assert torch.equal(found[name], a[name]), name


@pytest.mark.parametrize(("alpha", "end"), [("0", "a"), ("1", "b")])
def test_the_ends_are_the_models_themselves(models, tmp_path, alpha, end):
    assert blend(models, tmp_path / "out", alpha) == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (models / end / "model.safetensors").read_bytes()


def test_models_of_other_shapes_or_words_are_refused(models, tmp_path, capsys):
    other = load_model(models / "b")
    shutil.copytree(models / "b", models / "wider", dirs_exist_ok=True)
    other.config = MODEL.model_copy(update={"max_tokens": 12})
    save_model(other, models / "wider", stage="finetune")
    assert blend(models, tmp_path / "out", "0.5", b="wider") == 1
    assert "their max_tokens differ; only equal shapes are blended" in capsys.readouterr().err
    shutil.copytree(models / "b", models / "words", dirs_exist_ok=True)
    (models / "words/tokenizer/tokenizer.json").write_text("{}")
    assert blend(models, tmp_path / "out", "0.5", b="words") == 1
    assert "its tokenizer is not that of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", ["1.5", "0,0.5", "a", "nan"])
def test_what_is_no_share_is_refused(alpha, capsys):
    parser = build_parser("blend")
    with pytest.raises(SystemExit):
        parser.parse_args(["blend", "a", "b", "--alpha", alpha, "--out", "c"])
    assert "invalid" in capsys.readouterr().err
