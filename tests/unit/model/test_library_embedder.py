"""Models of other people against the library itself."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from align.errors import ConfigError, DataError, FormatError
from align.formats.model_folder import library_model, model_digest
from align.model.embedder import Embedder
from align.model.library_embedder import LibraryEmbedder
from tests.support.library_models import MODELS, PICTURES, TEXTS, write


@pytest.fixture(scope="module", name="root")
def _root(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_are_those_of_the_library(root, kind):
    folder = write(root, kind)
    assert library_model(folder) == kind
    ours = Embedder.load(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    opened = [Image.open(io.BytesIO(each)).convert("RGB") for each in PICTURES]
    inputs = processor(text=TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    inputs |= processor.image_processor(images=opened, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs)
    for mine, other in (
        (ours.embed_images(PICTURES), theirs.image_embeds),
        (ours.embed_texts(TEXTS), theirs.text_embeds),
    ):
        unit = torch.nn.functional.normalize(other, dim=-1).numpy()
        assert mine.dtype == np.float32
        assert np.abs(mine - unit).max() < 1e-6
        assert np.abs(unit[0] - unit[1]).max() > 1e-3  # that the inputs are told apart
    cosine = ours.embed_images(PICTURES) @ ours.embed_texts(TEXTS).T / ours.temperature
    bias = model.logit_bias.item() if kind.startswith("siglip") else 0.0
    assert np.abs(cosine + bias - theirs.logits_per_image.numpy()).max() < 1e-4
    assert ours.width == theirs.text_embeds.shape[1]
    assert ours.embed_texts([]).shape == (0, ours.width)
    alone = ours.embed_texts(TEXTS[2:3])  # a short text, which SigLIP sees with all of its padding
    assert np.abs(alone - ours.embed_texts(TEXTS)[2]).max() < 1e-6


def test_a_wrong_folder_is_one_line(root, tmp_path):
    whole = write(root, "clip")

    def without(name, *lacks):
        (tmp_path / name).mkdir()
        for file in whole.iterdir():
            if file.name not in lacks:
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    pickled = without("pickled", "model.safetensors")
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled: has no model\.safetensors; other files of weights are not"):
        Embedder.load(pickled)
    words = without(
        "words", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"
    )
    with pytest.raises(DataError, match="words: "):
        Embedder.load(words)
    half = without("half", "config.json")
    (half / "config.json").write_text(
        (whole / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(DataError, match=r"half: its weights lack \d+ tensors of CLIPModel, such as"):
        Embedder.load(half)
    other = without("other", "config.json")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FormatError, match="not a model of this project"):
        Embedder.load(other)
    with pytest.raises(ConfigError, match=r"evaluate.image_px is 64, but a model of clip has one size: null"):
        Embedder.load(whole, 64)


def test_a_folder_is_read_inside_itself_and_is_no_deeper_than_its_weights(root, tmp_path):
    def copied(name):
        return shutil.copytree(write(root, "clip"), tmp_path / name)

    def refusal(folder):
        with pytest.raises(DataError) as error:
            Embedder.load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    link = copied("link")
    (link / "model.safetensors").unlink()
    (link / "model.safetensors").symlink_to(root / "clip/model.safetensors")
    assert "link/model.safetensors: no file of this folder" in refusal(link)
    index = copied("index")
    (index / "model.safetensors").rename(tmp_path / "model.safetensors")
    names = dict.fromkeys(load_file(tmp_path / "model.safetensors"), "../model.safetensors")
    (index / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "index.json: names weights that are no files of this folder" in refusal(index)
    deep = copied("deep")
    text = (deep / "config.json").read_text()
    (deep / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 10000000'))
    assert "config.json: 10000000 layers, but the weights have " in refusal(deep)


def test_no_code_of_a_folder_runs(root, tmp_path):
    for file in write(root, "clip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    names = {"AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer"}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        document = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(document | {"auto_map": dict.fromkeys(names, "evil.Evil")}))
    with contextlib.suppress(DataError):
        Embedder.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_digest_is_that_of_all_that_decides(root, tmp_path):
    for file in write(root, "clip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = model_digest(tmp_path)
    assert first == model_digest(write(root, "clip"))
    (tmp_path / "README.md").write_text("no part of it")
    assert model_digest(tmp_path) == first
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert model_digest(tmp_path) != first


def test_open_clip_is_asked_for_by_name(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert library_model(tmp_path) == "open_clip"
    with pytest.raises(ConfigError, match=r"needs open_clip: pip install open_clip_torch==3\.3\.0"):
        LibraryEmbedder(tmp_path, "open_clip")
    hostile = '{"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust_remote_\\u0063ode": true}}}}'
    (tmp_path / "open_clip_config.json").write_text(hostile)
    with pytest.raises(DataError, match="code of the folder run, which is never done"):
        LibraryEmbedder(tmp_path, "open_clip")
