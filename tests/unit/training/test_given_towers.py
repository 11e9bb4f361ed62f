"""Pre-training from towers that were trained elsewhere: how their files are read, and what is no tower is one line."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.config.model import ModelConfig
from align.durable.files import sha256_file
from align.errors import AlignError
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training.given_towers import given_weights
from tests.support import training_data
from tests.support.given_towers import BERT, IMAGE_TOWER, efficientnet_weights, write_bert
from tests.support.training_data import MODEL, pretrain_config


def shaped(image_tower=f"timm:{IMAGE_TOWER}", **text):
    towers = {"image_tower": image_tower, "text_tower": {"config": BERT | text}}
    return ModelConfig.model_validate(MODEL.model_dump() | towers)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    _, folder = training_data.write(tmp_path_factory.mktemp("data"))
    return TextTokenizer.load(folder, MODEL.max_tokens)


@pytest.fixture(scope="module")
def efficientnet():
    return efficientnet_weights()


def of_image(file):
    return pretrain_config(image_weights={"path": str(file), "sha256": sha256_file(file)})


def of_text(folder):
    return pretrain_config(text_weights={"path": str(folder), "sha256": sha256_file(folder / "model.safetensors")})


def refusal(recipe, tokenizer, config=None):
    with torch.device("meta"):
        model = DualEncoder(config or shaped(), tokenizer.vocab_size)
    with pytest.raises(AlignError) as error:
        given_weights(model, recipe, tokenizer)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_of_torch_is_read_without_running_it(efficientnet, tokenizer, tmp_path):
    save_file(efficientnet, tmp_path / "b0.safetensors")
    torch.save({"state_dict": efficientnet}, tmp_path / "b0.pth")
    one, other = (
        given_weights(DualEncoder(shaped(), tokenizer.vocab_size), of_image(tmp_path / name), tokenizer)
        for name in ("b0.safetensors", "b0.pth")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(one["vision_model.model.conv_stem.weight"], efficientnet["conv_stem.weight"])
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    assert "pretrain.image_weights" in refusal(of_image(tmp_path / "hostile.pth"), tokenizer)
    torch.save(Hostile(tmp_path / "ran"), tmp_path / "hostile.pth")
    assert "does not load" in refusal(of_image(tmp_path / "hostile.pth"), tokenizer)
    assert not (tmp_path / "ran").exists()


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_is_no_image_tower_is_one_line(efficientnet, tokenizer, tmp_path):
    file = tmp_path / "b0.safetensors"

    def said(weights, config=None):
        save_file(weights, file)
        return refusal(of_image(file), tokenizer, config)

    last = max(name.split(".")[1] for name in efficientnet if name.startswith("blocks."))
    fewer = {name: value for name, value in efficientnet.items() if not name.startswith(f"blocks.{last}")}
    line = said(fewer)
    assert f"pretrain.image_weights: {file}: not the weights of model.image_tower timm:{IMAGE_TOWER}: blocks." in line
    assert f"blocks.{last}.0." in line and line.endswith(" more")
    assert "blocks.0.0.attn.weight is not known" in said(efficientnet | {"blocks.0.0.attn.weight": torch.ones(2)})
    bad = torch.full_like(efficientnet["bn1.bias"], torch.nan)
    assert "bn1.bias is not finite" in said(efficientnet | {"bn1.bias": bad})
    wide = {"conv_stem.weight": torch.ones(5, 3, 3, 3)}
    assert "conv_stem.weight is 5x3x3x3, expected " in said(efficientnet | wide)
    save_file(efficientnet, file)
    recipe = of_image(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} has the sha256 {sha256_file(file)}, not " in refusal(recipe, tokenizer)
    assert f"{file}: does not load: " in refusal(of_image(file), tokenizer)
    file.unlink()
    assert f"{file}: no such file" in refusal(recipe, tokenizer)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Its folder, the model, and the folder of the project's tokenizer."""
    root = tmp_path_factory.mktemp("bert")
    _, words = training_data.write(root)
    model = write_bert(root / "given", words, TextTokenizer.load(words, 16).vocab_size)
    return root / "given", model, words


@torch.no_grad()
def test_a_bert_computes_what_transformers_does(bert, tmp_path):
    folder, theirs, words = bert
    tokenizer = TextTokenizer.load(words, MODEL.max_tokens)
    model = DualEncoder(shaped(), tokenizer.vocab_size)
    model.load_state_dict(given_weights(model, of_text(folder), tokenizer), strict=False)
    model.eval()
    ids, mask = tokenizer(["a red bar at the top", "left side in blue and more words than that"])
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    torch.testing.assert_close(model.text_features(ids, mask), expected, atol=1e-5, rtol=1e-5)
    assert model.text_model.model.embeddings.word_embeddings.weight.shape[0] == tokenizer.vocab_size
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})  # the names of the first BERTs
    older = given_weights(model, of_text(tmp_path), tokenizer)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in older.items()) and len(older) > 20


def test_what_is_no_bert_is_one_line(bert, tmp_path):
    folder, _, words = bert
    tokenizer = TextTokenizer.load(words, MODEL.max_tokens)
    assert "hidden_size is 16, model.text_tower needs 32" in refusal(of_text(folder), tokenizer, shaped(hidden_size=32))
    other = training_data.write(tmp_path / "other", num_train=4)[1]
    assert "set fit_tokenizer.from to this folder" in refusal(of_text(folder), TextTokenizer.load(other, 16))
    recipe = of_text(folder)
    copy = tmp_path / "copy"
    write_bert(copy, words, tokenizer.vocab_size)
    recipe = of_text(copy)
    weights = load_file(copy / "model.safetensors")
    dropped = "bert.encoder.layer.0.output.dense.weight"
    save_file({name: value for name, value in weights.items() if name != dropped}, copy / "model.safetensors")
    assert " has the sha256 " in refusal(recipe, tokenizer)
    assert "not complete: encoder.layer.0.output.dense.weight missing" in refusal(of_text(copy), tokenizer)
    (copy / "model.safetensors").write_bytes(b"not weights")
    assert "does not load" in refusal(of_text(copy), tokenizer)
    (copy / "config.json").write_text("{}")
    assert f"pretrain.text_weights: {copy}: " in refusal(of_text(copy), tokenizer)
    (copy / "model.safetensors").unlink()
    torch.save(Hostile(tmp_path / "ran"), copy / "pytorch_model.bin")
    assert "no text encoder here: expected config.json and model.safetensors" in refusal(
        pretrain_config(text_weights={"path": str(copy), "sha256": "a" * 64}), tokenizer
    )
    assert not (tmp_path / "ran").exists()
