"""Models to and from `transformers.AlignModel`."""

import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignConfig, AlignModel, AlignProcessor, AutoProcessor, EfficientNetImageProcessor

from align.cli import main
from align.errors import DataError
from align.formats.model_folder import read_config, tokenizer_of
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import ImageTower, estimate_statistics, initialise
from align.model.preprocess import centre_crop, decode, to_pixels
from align.model.tokenizer import TextTokenizer
from align.release.exchange.interchange import model_config, our_weights, read_hugging_face, write_hugging_face
from tests.support.pictures import blurred_png
from tests.support.tiny_model import TINY, write

NATIVE = TINY.model_copy(update={"embed_width": ImageTower(TINY).width})
TEXTS = ["a red heart", "the yellow sun", "a blue star " * 20]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A model at native width with its statistics estimated, and its tokenizer."""
    tokenizer_dir = tokenizer_of(write(tmp_path_factory.mktemp("ours")))
    torch.manual_seed(0)
    model = DualEncoder(NATIVE, TextTokenizer.load(tokenizer_dir, NATIVE.max_tokens).vocab_size)
    estimate_statistics(model.vision_model, [pixels(8)])
    with torch.no_grad():
        model.log_temperature.fill_(-3.5)
    return model.eval(), tokenizer_dir


def pixels(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def folder(tmp_path):
    directory = tmp_path / "hf"
    directory.mkdir()
    return directory


def assert_equal_embeddings(ours, theirs, ids, mask):
    with torch.inference_mode():
        images, texts = ours.encode_image(pixels(len(ids))), ours.encode_text(ids, mask)
        out = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels(len(ids)))
        torch.testing.assert_close(images, out.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(texts, out.text_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(images @ texts.T / ours.temperature, out.logits_per_image, atol=1e-3, rtol=1e-4)
    assert float(images.std(0).mean()) > 1e-3


def test_a_written_folder_loads_in_plain_transformers(ours, tmp_path):
    model, tokenizer_dir = ours
    directory = folder(tmp_path)
    write_hugging_face(model, tokenizer_dir, directory)
    theirs, problems = AlignModel.from_pretrained(directory, output_loading_info=True)
    assert not any(problems.values()), problems
    assert float(theirs.temperature.detach()) == pytest.approx(np.exp(-3.5))
    ids, mask = TextTokenizer.load(tokenizer_dir, NATIVE.max_tokens)(TEXTS)
    assert_equal_embeddings(model, theirs.eval(), ids, mask)


def test_its_processor_is_our_preprocessing(ours, tmp_path):
    model, tokenizer_dir = ours
    directory = folder(tmp_path)
    write_hugging_face(model, tokenizer_dir, directory)
    files = [blurred_png(0, (90, 61)), blurred_png(1, (50, 133)), blurred_png(2, (36, 36))]
    mine = to_pixels(np.stack([centre_crop(decode(data, NATIVE.resize_px), NATIVE.image_px) for data in files]))
    ids, mask = TextTokenizer.load(tokenizer_dir, NATIVE.max_tokens)(TEXTS)
    for processor in (AlignProcessor.from_pretrained(directory), AutoProcessor.from_pretrained(directory)):
        images = [Image.open(io.BytesIO(data)) for data in files]
        batch = processor(images=images, text=TEXTS, return_tensors="pt")
        # of two levels of grey; torch's kernels for other CPUs round some pixels to the next one
        assert float((batch["pixel_values"] - mine).abs().max()) <= 1 / 127.5 + 1e-6
        assert batch["input_ids"].shape[1] == ids.shape[1] == NATIVE.max_tokens  # the last text is cut
        assert torch.equal(batch["input_ids"], ids) and torch.equal(batch["attention_mask"], mask)


def upstream(ours, tmp_path, **text):
    """A random AlignModel, longer in positions than its tokenizer's texts, as transformers saves it."""
    directory = folder(tmp_path)
    write_hugging_face(ours[0], ours[1], directory)  # for its processor and tokenizer
    config = AlignConfig.from_pretrained(directory)
    sections = {"text_config": config.text_config.to_dict() | {"max_position_embeddings": 40} | text}
    torch.manual_seed(3)
    model = AlignModel(AlignConfig(**(config.to_dict() | sections)))
    with torch.no_grad():
        model.temperature.fill_(0.02)
        initialise(model.vision_model)  # upstream's own start lets the signal die on its way
        model.train().get_image_features(pixels(8))  # with its momentum of 0.99 these become the statistics
    images = AlignProcessor.from_pretrained(directory).image_processor
    for name in ("model.safetensors", "processor_config.json"):
        (directory / name).unlink()
    model.save_pretrained(directory)
    images.save_pretrained(directory)  # preprocessor_config.json, as align-base has it
    return model.eval(), directory


@pytest.fixture(scope="module", name="whole")
def _whole(ours, tmp_path_factory):
    return upstream(ours, tmp_path_factory.mktemp("upstream"))[1]


@pytest.fixture
def directory(whole, tmp_path):
    """A folder of its own as upstream writes it."""
    return shutil.copytree(whole, tmp_path / "hf")


def test_an_upstream_folder_becomes_ours(ours, tmp_path):
    theirs, directory = upstream(ours, tmp_path)
    model, tokenizer = read_hugging_face(directory, batch_norm_group=16)
    assert model.config == NATIVE.model_copy(update={"batch_norm_group": 16, "temperature_init": 0.1})
    assert float(model.temperature.detach()) == pytest.approx(0.02)
    assert not model.training and tokenizer.get_vocab_size() == model.vocab_size
    ids, mask = TextTokenizer.load(ours[1], NATIVE.max_tokens)(TEXTS)
    assert_equal_embeddings(model, theirs, ids, mask)


def published_processor():
    """The image processor of the published checkpoint."""
    return EfficientNetImageProcessor(
        do_center_crop=True, rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False,
        resample=2,
    )  # fmt: skip


def test_align_base_fits_by_name_and_shape():
    """The published checkpoint's configuration, as transformers' conversion script makes it, without its bytes."""
    vision = {"image_size": 289, "hidden_dim": 640, "depthwise_padding": [], "width_coefficient": 2.0}
    config = AlignConfig(vision_config=vision | {"depth_coefficient": 3.1}, text_config={}, projection_dim=640)
    processor = published_processor()
    mine = model_config(config, processor, longest=64, batch_norm_group=16)
    assert (mine.image_tower, mine.text_tower, mine.embed_width) == ("B7", "Base", 640)
    assert (mine.resize_px, mine.image_px, mine.max_tokens, mine.stochastic_depth) == (346, 289, 64, 0.2)
    with torch.device("meta"):
        theirs, model = AlignModel(config), DualEncoder(mine, config.text_config.vocab_size)
    given = our_weights(theirs.state_dict(), mine.max_tokens)
    wanted = model.state_dict()
    assert {name: tensor.shape for name, tensor in given.items()} == {n: t.shape for n, t in wanted.items()}


@pytest.mark.parametrize(("change", "message"), [
    ({"vision_config": {"depthwise_padding": [18]}}, r"vision_config\.depthwise_padding is \[18\]"),
    ({"text_config": {"intermediate_size": 100}}, r"text_config\.intermediate_size is 100"),
])  # fmt: skip
def test_another_architecture_is_refused(change, message):
    processor = published_processor()
    with pytest.raises(DataError, match=message):
        model_config(AlignConfig(**change), processor, longest=64, batch_norm_group=16)
    with pytest.raises(DataError, match="do_normalize is True"):
        normalised = EfficientNetImageProcessor(**processor.to_dict() | {"do_normalize": True})
        model_config(AlignConfig(), normalised, longest=64, batch_norm_group=16)


def reweighed(**changes):
    """Changes weights; those that are None are left out."""

    def change(directory):
        weights = load_file(directory / "model.safetensors") | changes
        kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
        save_file(kept, directory / "model.safetensors", {"format": "pt"})

    return change


def without(name):
    return lambda directory: (directory / name).unlink()


@pytest.mark.parametrize(("change", "message"), [
    (without("config.json"), "it has no config.json"),
    (without("tokenizer.json"), r"there is no tokenizer\.json"),
    (reweighed(temperature=torch.tensor(-0.5)), "its temperature divides the cosine and must be a positive number"),
    (reweighed(**{"text_projection.weight": None}), r"model\.safetensors: does not load: .*weight is missing"),
    (reweighed(**{"text_projection.weight": torch.zeros(3, 3)}), "text_projection.weight is 3x3, expected "),
    (without("model.safetensors"), r"model\.safetensors: no such file"),
])  # fmt: skip
def test_a_broken_folder_is_a_clear_error(directory, change, message):
    change(directory)
    with pytest.raises(DataError, match=message):
        read_hugging_face(directory, batch_norm_group=16)


def changed(name, **values):
    """Changes keys of a JSON file, `text_config__vocab_size` that of an object in it."""

    def change(directory):
        document = json.loads((directory / name).read_text())
        for key, value in values.items():
            outer, _, inner = key.rpartition("__")
            (document[outer] if outer else document)[inner] = value
        (directory / name).write_text(json.dumps(document))

    return change


def written(name, text):
    return lambda directory: (directory / name).write_text(text)


def moved_out(directory, name):
    target = directory.parent / "elsewhere"
    target.mkdir()
    return (directory / name).rename(target / name)


def linked(name):
    return lambda directory: (directory / name).symlink_to(moved_out(directory, name))


def index_of_weights(directory):
    file = moved_out(directory, "model.safetensors")
    names = dict.fromkeys(load_file(file), "../elsewhere/model.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def pickled(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def pipe(directory):
    (directory / "preprocessor_config.json").unlink()
    os.mkfifo(directory / "preprocessor_config.json")


WIDE = {"text_config__hidden_size": 2**20, "text_config__intermediate_size": 2**22}
NO_FILE, NO_MODEL = "no file of this folder", "not an ALIGN model in Hugging Face's format"
LAYERS = "tensors, its configuration more layers"
HOSTILE = {
    "a link out": (linked("model.safetensors"), f"model.safetensors: {NO_FILE}"),
    "a configuration elsewhere": (linked("config.json"), f"config.json: {NO_FILE}"),
    "a link to itself": (lambda folder: (folder / "more").symlink_to(folder / "more"), f"more: {NO_FILE}"),
    "a pipe": (pipe, f"preprocessor_config.json: {NO_FILE}"),
    "an index of weights elsewhere": (index_of_weights, "names weights that are no files of this folder"),
    "a pickle": (pickled, "model.safetensors: no such file"),
    "10 million layers": (changed("config.json", text_config__num_hidden_layers=10**7), LAYERS),
    "as deep": (changed("config.json", vision_config__depth_coefficient=1e7), LAYERS),
    "as wide": (
        changed("config.json", vision_config__width_coefficient=1e4), "vision_projection.weight is missing"
    ),
    "wide words": (changed("config.json", **WIDE), "model.safetensors: does not load: text_model."),
    "large pictures": (
        changed("preprocessor_config.json", size={"height": 10**6, "width": 10**6}), "less than or equal to 4096"
    ),
    "a text for a number": (changed("config.json", text_config__hidden_size="wide"), NO_MODEL),
    "a list of towers": (changed("config.json", vision_config=[[]]), NO_MODEL),
    "no number of tokens": (changed("tokenizer_config.json", model_max_length="many"), NO_MODEL),
    "a number of 5,000 digits": (
        written("config.json", '{"model_type": "align", "seed": 1' + "0" * 5000 + "}"), "no ALIGN model in Hugging"
    ),
    "a processor that is a list": (written("preprocessor_config.json", "[]"), "config.json: not a JSON object"),
    "no processor": (without("preprocessor_config.json"), "preprocessor_config.json: no such file"),
    "brackets": (written("tokenizer_config.json", "[" * 10**5), "tokenizer_config.json: not valid JSON"),
    "a whole disk of JSON": (
        lambda folder: os.truncate(folder / "tokenizer_config.json", 10**12), "config.json: larger than 32 MiB"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_folder_of_a_stranger_is_read_inside_itself_and_refused_in_one_line(directory, tmp_path, capsys, case):
    change, message = HOSTILE[case]
    change(directory)
    capsys.readouterr()
    assert main(["import_model", "--from", str(directory), "--out", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_what_is_imported_names_the_digest_of_what_was_read(directory, tmp_path):
    torch.save({}, directory / "pytorch_model.bin")  # not read, so of no consequence
    assert main(["import_model", "--from", str(directory), "--out", str(tmp_path / "out")]) == 0
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert read_config(tmp_path / "out").imported.weights == digest
