"""The towers: the paper's sizes, and each known trap of the libraries below them."""

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from align.config.model import ImageTowerName, ModelConfig, TextTowerName
from align.config.params import Params
from align.errors import ConfigError, DataError, FormatError
from align.formats.model_folder import model_digest, tokenizer_of
from align.model import mbconv
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.model.embedder import Embedder
from align.model.image_tower import ImageTower
from align.model.mbconv import DepthwiseConv2d, convolve
from align.model.presets import IMAGE_TOWERS, TEXT_TOWERS, named
from align.model.tokenizer import fit_wordpiece, save_tokenizer
from tests.support import small_model, training_data
from tests.support.training_data import MODEL


def config(**changes):
    return ModelConfig.model_validate(MODEL.model_dump() | changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DualEncoder(MODEL, vocab_size=50)


def pictures(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def words(count):
    ids = torch.randint(5, 50, (count, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return ids, mask


def test_embeddings_are_unit_vectors_that_differ_before_the_first_step(model):
    images = model.train().encode_image(pictures(8)).detach()
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(8))
    assert float((images @ images.T).triu(1).abs().max()) < 0.999
    assert images.std(0).mean() > 1e-2


@pytest.mark.parametrize("raw", [-50.0, -1.0, 0.0, 3.0])
def test_temperature_is_positive_whatever_is_learned(model, raw):
    with torch.no_grad():
        model.log_temperature.fill_(raw)
    assert float(model.temperature.detach()) > 0


def test_stochastic_depth_drops_whole_samples():
    shape = {"width_coefficient": 0.25, "depth_coefficient": 0.5}
    tower = ImageTower(config(image_tower=shape, stochastic_depth=0.5, batch_norm_group=1)).train()
    rates = [block.drop_rate for block in tower.encoder.blocks]
    assert rates[0] == 0.0 and 0.25 < rates[-1] < 0.5
    keep = tower._keep(torch.tensor([[0.1], [rates[-1]], [0.9]]).expand(3, tower.num_blocks))
    assert keep[0] is None and keep[-1] is not None
    assert keep[-1].tolist() == pytest.approx([0.0, 1 / (1 - rates[-1]), 1 / (1 - rates[-1])])
    assert tower.eval()._keep(torch.rand(3, tower.num_blocks)) == [None] * tower.num_blocks
    block = next(each for each in tower.encoder.blocks if each.adds)
    x = torch.randn(3, block.projection.project_conv.out_channels, 4, 4)
    plain, dropped = block(x), block(x, torch.tensor([0.0, 4 / 3, 1.0]))
    assert torch.equal(dropped[0], x[0]) and torch.equal(dropped[2], plain[2])
    torch.testing.assert_close(dropped[1] - x[1], (plain[1] - x[1]) * 4 / 3)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", [2, 4, 5, 8])
def test_depthwise_convolution_equals_upstreams(kernel, stride, size, device):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, kernel, stride).to(device)
    half = kernel // 2
    pad = nn.ZeroPad2d((half - 1, half, half - 1, half)) if stride == 2 else nn.ZeroPad2d(half)
    plain = nn.Conv2d(6, 6, kernel, stride, groups=6, bias=False).to(device)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6, size, size).to(device).contiguous(memory_format=torch.channels_last)
    results = []
    with torch.no_grad():
        torch.testing.assert_close(ours.plain()(x), ours(x), atol=1e-5, rtol=1e-5)
    for layer in (ours, nn.Sequential(pad, plain)):
        inputs = x.clone().requires_grad_()
        out = layer(inputs)
        out.square().sum().backward()
        weight = next(layer.parameters())
        results.append((out.detach(), inputs.grad, weight.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 6), (5, 2, 7), (5, 2, 2), (3, 1, 5)])
def test_as_cuda_computes_it_a_depthwise_kernel_keeps_its_size(kernel, stride, size, monkeypatch):
    """cuDNN is slow at 4x4 and 6x6."""
    torch.manual_seed(0)
    values = torch.randn(2, 3, size, size, dtype=torch.float64), torch.randn(3, 1, kernel, kernel, dtype=torch.float64)
    sides, found, conv2d = list[int](), [], F.conv2d

    def noted(x, weight, **options):
        sides.append(weight.shape[-1])
        return conv2d(x, weight, **options)

    monkeypatch.setattr(F, "conv2d", noted)
    for on_cuda in (False, True):
        monkeypatch.setattr(mbconv, "pads_maps", lambda _, answer=on_cuda: answer)
        inputs = [each.clone().requires_grad_() for each in values]
        out = convolve(inputs[0], inputs[1], stride)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.testing.assert_close(*found)
    assert sides == [kernel + stride - 1, kernel]


def test_evaluation_is_independent_of_the_batch(model):
    with torch.inference_mode():
        x = pictures(6)
        torch.testing.assert_close(model.eval().encode_image(x)[2:3], model.encode_image(x[2:3]), atol=1e-5, rtol=1e-5)
        ids, mask = words(4)
        torch.testing.assert_close(model.encode_text(ids, mask)[:1], model.encode_text(ids[:1, :4], mask[:1, :4]))


def test_texts_of_any_length_and_order_embed_as_in_one_padded_batch(model):
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 50, (40, 7), generator=draw)  # more than are encoded together
    mask = (torch.arange(7) < torch.randint(1, 7, (40, 1), generator=draw)).long()
    mask[5] = torch.tensor([0, 0, 1, 1, 1, 0, 0])  # whoever pads in front gets what they would get
    seen = []
    model.text_model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    hidden = model.text_model(ids, mask)[:, 0]
    whole = F.normalize(model.text_projection(hidden), dim=-1)
    torch.testing.assert_close(model.encode_text(ids, mask), whole)
    assert sum(seen[1:]) < 0.8 * seen[0]
    assert len(seen) == 4


def test_a_saved_model_loads_as_it_was(model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_model(model, tmp_path / "a", stage="pretrain")
    loaded = load_model(tmp_path / "a")
    save_model(loaded, tmp_path / "b", stage="pretrain")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert loaded.config == MODEL and not loaded.training


def test_a_broken_model_folder_is_a_clear_error(model, tmp_path):
    with pytest.raises(DataError, match=r"config\.json is missing"):
        load_model(tmp_path)
    save_model(model, tmp_path, stage="pretrain")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(FormatError, match="schema_version 1, this code reads 2"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"width": 16', '"width": 32'))
    with pytest.raises(DataError, match="does not load"):
        load_model(tmp_path)


@pytest.mark.parametrize(("old", "new"), [
    ('"layers": 1', '"layers": 10000000'),
    ('"depth_coefficient": 0.25', '"depth_coefficient": 10000000.0'),
    ('"vocab_size": VOCAB', '"vocab_size": 2000000000'),
    ('"vocab_size": VOCAB', '"vocab_size": 1' + "0" * 30),
])  # fmt: skip
def test_a_configuration_of_a_stranger_is_compared_before_it_is_built(model, tmp_path, monkeypatch, old, new):
    save_model(model, tmp_path, stage="pretrain")
    path, old = tmp_path / "config.json", old.replace("VOCAB", str(model.vocab_size))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    built = []
    build = DualEncoder.__init__
    monkeypatch.setattr(
        DualEncoder, "__init__", lambda *given: built.append(torch.get_default_device()) or build(*given)
    )
    with pytest.raises(DataError, match=r"model\.safetensors: does not load: ") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    assert torch.device("cpu") not in built  # only on `meta`, which has no memory


def millions(module):
    return sum(param.numel() for param in module.parameters()) / 1e6


#: Pooled width and, where the paper's towers are meant, parameters in millions.
IMAGE = {
    "B0": (320, None), "B1": (320, 6.10), "B2": (352, None), "B3": (384, 10.10), "B4": (448, None), "B5": (512, 27.29),
    "B6": (576, None), "B7": (640, 62.14), "L2": (1376, 467.22),
}  # fmt: skip

#: Parameters in millions, without pooler, at 100k words and BERT's 512 positions.
TEXT = {"Mini": 28.89, "Small": 64.07, "Medium": 76.68, "Base": 162.25, "Large": 405.24}


@pytest.mark.parametrize("name", get_args(ImageTowerName))
def test_image_towers_have_the_published_size(name):
    with torch.device("meta"):
        tower = ImageTower(config(image_tower=name))
    width, size = IMAGE[name]
    assert tower.width == width
    assert size is None or millions(tower) == pytest.approx(size, abs=0.005)


@pytest.mark.parametrize("name", get_args(TextTowerName))
def test_text_towers_have_the_published_size(name):
    with torch.device("meta"):
        model = DualEncoder(config(text_tower=name, max_tokens=512), vocab_size=100_000)
    assert millions(model.text_model) == pytest.approx(TEXT[name], abs=0.005)


@pytest.mark.parametrize(("image", "text", "width"), [("L2", "Large", 1376), ("B7", "Base", 640), ("B0", "Mini", 320)])
def test_native_widths_need_no_image_projection_and_others_get_one(image, text, width):
    for wanted in (width, 100):
        with torch.device("meta"):
            model = DualEncoder(config(image_tower=image, text_tower=text, embed_width=wanted), 50)
        assert isinstance(model.vision_projection, nn.Identity) == (wanted == width)
        if isinstance(model.vision_projection, nn.Linear):
            assert tuple(model.vision_projection.weight.shape) == (wanted, width)
        assert model.text_projection.weight.shape[0] == wanted


def test_a_shape_finds_its_name():
    assert [named(shape) for shape in IMAGE_TOWERS.values()] == list(get_args(ImageTowerName))
    assert [named(shape) for shape in TEXT_TOWERS.values()] == list(get_args(TextTowerName))
    own = IMAGE_TOWERS["B0"].model_copy(update={"width_coefficient": 0.3})
    assert named(own) == own


@pytest.mark.parametrize(("changes", "message"), [
    ({"image_tower": "B9"}, r"model\.image_tower\.name' = 'B9': Input should be 'B0'"),
    ({"image_tower": {"width_coefficient": 1.0}}, r"model\.image_tower\.shape\.depth_coefficient' is missing"),
    ({"image_tower": None}, r"model\.image_tower\.shape'"),
    ({"text_tower": {"width": 16, "layers": 1, "heads": 3}}, "width 16 is not a multiple of heads 3"),
    ({"text_tower": {"width": 16, "layers": 1, "heads": 2, "depth": 2}}, r"unknown parameter.*text_tower.*depth"),
    ({"batch_norm_group": 0}, r"model\.batch_norm_group' = 0"),
])  # fmt: skip
def test_a_wrong_tower_is_one_clear_line(changes, message):
    with pytest.raises(ConfigError, match=message):
        Params({"model": MODEL.model_dump() | changes}, Path("params.yaml")).section(ModelConfig)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model"))


def test_rows_follow_the_inputs_whatever_the_batch(folder):
    embedder = Embedder.load(folder)
    texts = ["a fox " * (1 + n % 7) + "owl" * (n % 3) for n in range(70)]
    together = embedder.embed_texts(texts)
    assert together.shape == (70, embedder.width) and together.dtype == np.float32
    np.testing.assert_allclose(together[41:42], embedder.embed_texts(texts[41:42]), atol=1e-5)
    images = [sample.image for sample in training_data.samples(66)]
    embeds = embedder.embed_images(images)
    np.testing.assert_allclose(embeds[65:], embedder.embed_images(images[65:]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1.0, atol=1e-5)


def test_nothing_in_nothing_out(folder):
    embedder = Embedder.load(folder)
    assert embedder.embed_images([]).shape == (0, embedder.width)
    assert embedder.embed_texts([]).shape == (0, embedder.width)


def test_another_tokenizer_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    other = fit_wordpiece(["one two"], vocab_size=20, min_count=1)
    save_tokenizer(other, tokenizer_of(tmp_path / "model"), max_tokens=8)
    with pytest.raises(DataError, match="not the tokenizer it was trained with"):
        Embedder.load(tmp_path / "model")


def test_the_tokenizer_decides_the_digest(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    assert model_digest(tmp_path / "model") == model_digest(folder)
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "tokenizer" / "tokenizer_config.json").unlink()  # which notes the digest of the one before
    assert model_digest(tmp_path / "model") != model_digest(folder)


def test_a_folder_of_an_earlier_version_has_no_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    line = (
        r"model: the model has no tokenizer \(tokenizer/tokenizer.json is missing\); run the stage .*, or copy .* to "
    )
    for read in (Embedder.load, model_digest):
        with pytest.raises(DataError, match=line):
            read(tmp_path / "model")
