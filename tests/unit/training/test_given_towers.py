"""Pre-training from towers that were trained elsewhere: what they compute stays, and what is no tower is one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel

from align.config.model import ImageTowerShape, ModelConfig, TextTowerShape
from align.config.recipe import Recipe
from align.durable.files import sha256_file
from align.errors import AlignError
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training.given_towers import given_weights
from tests.golden import timm_towers
from tests.support import training_data
from tests.support.training_data import MODEL, pretrain_config

GOLDEN = json.loads(timm_towers.FILE.read_text())
B0 = MODEL.model_copy(update={"image_tower": "B0"})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    _, folder = training_data.write(tmp_path_factory.mktemp("data"))
    return TextTokenizer.load(folder, MODEL.max_tokens)


@pytest.fixture(scope="module")
def efficientnet() -> dict[str, Tensor]:
    return timm_towers.weights(GOLDEN["names"])


def of_image(file: Path, architecture: str = "tf_efficientnet_b0", pixels: str = "inception") -> Recipe:
    given = {"path": str(file), "sha256": sha256_file(file), "architecture": architecture, "pixels": pixels}
    return pretrain_config(image_weights=given)


def of_text(folder: Path) -> Recipe:
    file = next(folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file())
    return pretrain_config(text_weights={"path": str(folder), "sha256": sha256_file(file)})


def started(recipe: Recipe, tokenizer: TextTokenizer, config: ModelConfig = MODEL) -> DualEncoder:
    model = DualEncoder(config, tokenizer.vocab_size)
    model.load_state_dict(given_weights(model, recipe, tokenizer), strict=False)
    return model.eval()


def refusal(recipe: Recipe, tokenizer: TextTokenizer, config: ModelConfig = MODEL) -> str:
    with torch.device("meta"):
        model = DualEncoder(config, tokenizer.vocab_size)
    with pytest.raises(AlignError) as error:
        given_weights(model, recipe, tokenizer)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("variant", "architecture", "pixels"),
    [
        ("tensorflow", "tf_efficientnet_b0.ap_in1k", "inception"),
        ("torch", "efficientnet_b0", "inception"),
        ("imagenet in grey", "tf_efficientnet_b0", "imagenet"),
    ],
)
@torch.no_grad()
def test_an_efficientnet_computes_what_timm_does(
    variant: str, architecture: str, pixels: str, efficientnet: dict[str, Tensor], tokenizer: TextTokenizer,
    tmp_path: Path,
) -> None:  # fmt: skip
    """At a size where both pad alike; of pixels in [-1, 1], whatever timm's were."""
    save_file(efficientnet, tmp_path / "b0.safetensors")
    model = started(of_image(tmp_path / "b0.safetensors", architecture, pixels), tokenizer, B0)
    features = model.vision_model(timm_towers.pictures() * 2 - 1)
    expected = torch.tensor(GOLDEN[variant])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    for other in {"tensorflow", "torch", "imagenet in grey"} - {variant}:  # or the agreement would say little
        assert (torch.tensor(GOLDEN[other]) - expected).abs().max() > 2e-3


@torch.no_grad()
def test_the_frame_around_a_picture_is_the_only_deviation_of_its_pixels(
    efficientnet: dict[str, Tensor], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    save_file(efficientnet, tmp_path / "b0.safetensors")
    model = started(of_image(tmp_path / "b0.safetensors", pixels="imagenet"), tokenizer, B0)
    cosine = torch.cosine_similarity(
        model.vision_model(timm_towers.pictures() * 2 - 1), torch.tensor(GOLDEN["imagenet"])
    )
    assert cosine.min() > 0.9999  # of one row and column in 64, on made-up weights


def test_a_file_of_torch_is_read_without_running_it(
    efficientnet: dict[str, Tensor], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    save_file(efficientnet, tmp_path / "b0.safetensors")
    torch.save({"state_dict": efficientnet}, tmp_path / "b0.pth")
    one, other = (
        given_weights(DualEncoder(B0, tokenizer.vocab_size), of_image(tmp_path / name), tokenizer)
        for name in ("b0.safetensors", "b0.pth")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    assert "pretrain.image_weights" in refusal(of_image(tmp_path / "hostile.pth"), tokenizer, B0)
    torch.save(Hostile(tmp_path / "ran"), tmp_path / "hostile.pth")
    assert "does not load" in refusal(of_image(tmp_path / "hostile.pth"), tokenizer, B0)
    assert not (tmp_path / "ran").exists()


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_what_is_no_image_tower_is_one_line(
    efficientnet: dict[str, Tensor], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "b0.safetensors"

    def said(weights: dict[str, Tensor], config: ModelConfig = B0) -> str:
        save_file(weights, file)
        return refusal(of_image(file), tokenizer, config)

    fewer = {name: value for name, value in efficientnet.items() if not name.startswith("blocks.6")}
    line = said(fewer)
    assert f"pretrain.image_weights: {file}: not the weights of model.image_tower B0: encoder." in line
    assert "encoder.blocks.15.expansion.expand_conv.weight is missing" in line and line.endswith(" more")
    assert "blocks.0.0.attn.weight is not known" in said(efficientnet | {"blocks.0.0.attn.weight": torch.ones(2)})
    assert "embeddings.batchnorm.bias is not finite" in said(efficientnet | {"bn1.bias": torch.full((32,), torch.nan)})
    smaller = B0.model_copy(update={"image_tower": ImageTowerShape(width_coefficient=0.5, depth_coefficient=1.0)})
    assert "embeddings.convolution.weight is 32x3x3x3, expected 16x3x3x3" in said(efficientnet, smaller)
    save_file(efficientnet, file)
    recipe = of_image(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} has the sha256 {sha256_file(file)}, not " in refusal(recipe, tokenizer, B0)
    assert f"{file}: does not load: " in refusal(of_image(file), tokenizer, B0)
    file.unlink()
    assert f"{file}: no such file" in refusal(recipe, tokenizer, B0)


def write_bert(folder: Path, tokenizer_folder: Path, num_words: int, **changes: object) -> BertModel:
    """A BERT of the tests' size with random weights and its tokenizer, as the hub has it: with heads and a pooler."""
    torch.manual_seed(3)
    shape = MODEL.text_tower
    assert isinstance(shape, TextTowerShape)
    values: dict[str, object] = {
        "vocab_size": num_words + 3, "hidden_size": shape.width, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "intermediate_size": 4 * shape.width, "initializer_range": 0.3,
    }  # fmt: skip
    model = BertForPreTraining(BertConfig(**(values | changes)))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    return model.bert.eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BertModel, Path]:
    """Its folder, the model, and the folder of the project's tokenizer."""
    root = tmp_path_factory.mktemp("bert")
    _, words = training_data.write(root)
    model = write_bert(root / "given", words, TextTokenizer.load(words, 16).vocab_size)
    return root / "given", model, words


@torch.no_grad()
def test_a_bert_computes_what_transformers_does(bert: tuple[Path, BertModel, Path], tmp_path: Path) -> None:
    folder, theirs, words = bert
    tokenizer = TextTokenizer.load(words, MODEL.max_tokens)
    model = started(of_text(folder), tokenizer)
    ids, mask = tokenizer(["a red bar at the top", "left side in blue and more words than that"])
    expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    torch.testing.assert_close(model.text_features(ids, mask), expected, atol=1e-5, rtol=1e-5)
    assert model.text_model.embeddings.position_embeddings.weight.shape[0] == MODEL.max_tokens
    assert model.text_model.embeddings.word_embeddings.weight.shape[0] == tokenizer.vocab_size
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(weights, tmp_path / "pytorch_model.bin")  # the names, and the format, of the first BERTs
    older = given_weights(model, of_text(tmp_path), tokenizer)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in older.items()) and len(older) > 20


def test_what_is_no_bert_is_one_line(bert: tuple[Path, BertModel, Path], tmp_path: Path) -> None:
    folder, _, words = bert
    tokenizer = TextTokenizer.load(words, MODEL.max_tokens)
    wide = MODEL.model_copy(update={"text_tower": TextTowerShape(width=32, layers=1, heads=2)})
    assert "hidden_size is 16, model.text_tower needs 32" in refusal(of_text(folder), tokenizer, wide)
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
    (copy / "model.safetensors").unlink()
    torch.save(Hostile(tmp_path / "ran"), copy / "pytorch_model.bin")
    assert "does not load" in refusal(of_text(copy), tokenizer) and not (tmp_path / "ran").exists()
    (copy / "config.json").write_text("{}")
    assert f"pretrain.text_weights: {copy}: " in refusal(of_text(copy), tokenizer)
    (copy / "pytorch_model.bin").unlink()
    assert "no text encoder here: expected config.json, and model.safetensors or pytorch_model.bin" in refusal(
        pretrain_config(text_weights={"path": str(copy), "sha256": "a" * 64}), tokenizer
    )
