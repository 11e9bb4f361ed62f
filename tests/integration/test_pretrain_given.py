"""`align fit_tokenizer`, `pretrain` and `finetune` from an image model of timm and a BERT that others trained (LiT)."""

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from align.durable.files import sha256_file
from align.formats.model_folder import read_config
from align.model.dual_encoder import load_model
from align.model.tokenizer import TextTokenizer
from tests.support import training_data
from tests.support.given_towers import BERT, IMAGE_TOWER, efficientnet_weights, write_bert
from tests.support.killing import Command, run
from tests.support.params import sets
from tests.support.training_data import RECIPE
from tests.support.training_project import write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Shards, the two towers, and parameters that name both and lock the image tower; the stages have run."""
    root = tmp_path_factory.mktemp("given")
    shards, words = training_data.write(root / "data")
    write_bert(root / "bert", words, TextTokenizer.load(words, 16).vocab_size)
    save_file(efficientnet_weights(), root / "b0.safetensors")
    text = {"path": "bert", "sha256": sha256_file(root / "bert/model.safetensors")}
    image = {"path": "b0.safetensors", "sha256": sha256_file(root / "b0.safetensors")}
    recipe = RECIPE | {
        "num_steps": 3, "validate_every_steps": 3, "num_processes": 2, "shard_weights": True, "locked": "image",
        "image_weights": image, "text_weights": text,
    }  # fmt: skip
    write_project(root, (shards, root / "tokenizer"), recipe)
    yaml, file = YAML(), root / "params.yaml"
    values = yaml.load(file)
    values["model"] |= {"image_tower": f"timm:{IMAGE_TOWER}", "text_tower": {"config": BERT}}
    values["fit_tokenizer"]["from"] = {"path": "bert", "sha256": sha256_file(root / "bert/tokenizer.json")}
    values["finetune"]["num_steps"] = 2
    yaml.dump(values, file)
    for stage in ("fit_tokenizer", "pretrain", "finetune"):
        run([stage], root)
    return root


def test_the_model_is_that_of_the_given_towers(project):
    words = [TextTokenizer.load(project / name, 16).vocabulary for name in ("tokenizer", "data/tokenizer")]
    assert words[0] == words[1]  # the BERT's
    config = read_config(project / "models/finetuned")
    assert config.imported is not None and config.imported.folder == "b0.safetensors, bert"
    assert config.imported.weights == ", ".join(
        sha256_file(project / name) for name in ("b0.safetensors", "bert/model.safetensors")
    )


def test_the_locked_tower_is_the_given_one_and_the_other_has_learned(project):
    given = efficientnet_weights()
    bert = load_file(project / "bert/model.safetensors")
    for stage in ("pretrained", "finetuned"):  # which inherits `locked`
        weights = load_model(project / "models" / stage).state_dict()
        for name in ("conv_stem.weight", "bn1.running_mean"):
            assert torch.equal(weights[f"vision_model.model.{name}"], given[name])
        learned = weights["text_model.model.encoder.layer.0.output.dense.weight"]
        apart = (learned - bert["bert.encoder.layer.0.output.dense.weight"]).norm() / learned.norm()
        assert 0 < apart < 0.5  # it began with the BERT's


def test_a_file_that_was_changed_is_one_line(project):
    """Said before anything is written."""
    models = sorted((project / "models").rglob("*"))
    command = Command(
        ["pretrain", *sets(f"pretrain.image_weights={{path: b0.safetensors, sha256: {'a' * 64}}}")], project
    )
    assert command.ended(300) and command.exit_code == 1
    lines = [line for line in command.errors.splitlines() if "error" in line]
    assert len(lines) == 1 and "pretrain.image_weights: b0.safetensors has the sha256" in lines[0]
    assert "Traceback" not in command.errors and sorted((project / "models").rglob("*")) == models
