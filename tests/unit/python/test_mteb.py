"""mteb's side is a stand-in of what the adapter uses; tests/integration/test_adapters.py has the real one."""

import io
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict

from align.errors import ConfigError, DataError
from align.formats.model_folder import model_digest
from align.model.embedder import Embedder
from align.python import mteb
from tests.support import tiny_model

TASK = SimpleNamespace(name="Foxes")


class ModelMeta(BaseModel):
    """The fields that mteb 2.26's has; it forbids others, and those without a default must be given."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    loader: None
    name: str
    revision: str
    release_date: str | None
    languages: list[str] | None
    n_parameters: int | None
    memory_usage_mb: float | None
    max_tokens: float | None
    embed_dim: int | None
    license: str | None
    open_weights: bool | None
    public_training_code: str | None
    public_training_data: bool | None
    framework: list[str]
    similarity_fn_name: str | None
    use_instructions: bool | None
    training_datasets: set[str] | None
    modalities: list[str] = field(default_factory=lambda: ["text"])


@dataclass(frozen=True)
class _Image:
    """The type of a column of pictures, as the library `datasets` has it."""

    decode: bool = True


class _Dataset:
    """A data set of that library: rows of columns, whose pictures are decoded unless their column was cast."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def select_columns(self, names):
        return _Dataset({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        return _Dataset(self.columns, self.features | {name: feature})

    def __iter__(self):
        for cells in zip(*self.columns.values(), strict=True):
            yield {name: self._cell(name, cell) for name, cell in zip(self.columns, cells, strict=True)}

    def _cell(self, name, cell):
        if isinstance(self.features[name], _Image):
            assert not self.features[name].decode, "the file's bytes were there to be taken"
            return {"bytes": cell, "path": None}
        return cell


def _inputs(**columns):
    features = {name: _Image() if name == "image" else SimpleNamespace(dtype="string") for name in columns}
    return SimpleNamespace(dataset=_Dataset(columns, features))


def _jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(name="encoder")
def _encoder(model, monkeypatch):
    package, models, meta = ModuleType("mteb"), ModuleType("mteb.models"), ModuleType("mteb.models.model_meta")
    vars(models)["ModelMeta"] = ModelMeta
    vars(meta)["ScoringFunction"] = SimpleNamespace(COSINE="cosine")
    for module in (package, models, meta):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return mteb.load(model)


def _encode(encoder, inputs, **kwargs):
    return encoder.encode(inputs, task_metadata=TASK, hf_split="test", hf_subset="default", **kwargs)


def test_each_kind_of_input(model, encoder):
    ours = Embedder.load(model)
    files, texts = [_jpeg(seed) for seed in range(3)], ["a red heart", "the yellow sun", "a"]
    images, words = ours.embed_images(files), ours.embed_texts(texts)
    assert np.allclose(_encode(encoder, _inputs(image=files, label=[1, 2, 3]), batch_size=2), images, atol=1e-6)
    assert np.allclose(_encode(encoder, _inputs(text=texts, id=["x", "y", "z"])), words, atol=1e-6)
    both = _encode(encoder, _inputs(text=texts, image=files))
    total = images + words
    assert np.allclose(both, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-6)


def test_pictures_that_only_the_loader_has(model, encoder):
    """As in mteb's pairs of images and texts, whose data set is a list of pictures of Pillow."""

    class Loader(list[dict[str, Any]]):
        dataset = SimpleNamespace(features={"image": []})

    opened = [Image.open(io.BytesIO(_jpeg(seed))) for seed in range(3)]
    files = []
    for picture in opened:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")  # the pixels that Pillow has; ours of a JPEG may differ by a grey level
        files.append(buffer.getvalue())
    ours = Embedder.load(model).embed_images(files)
    embeds = _encode(encoder, Loader([{"image": opened[:2]}, {"image": opened[2:]}]))
    assert np.allclose(embeds, ours, atol=1e-6)
    assert not np.allclose(embeds, ours[::-1], atol=1e-6)  # so the order of the inputs was seen


def test_the_revision_is_the_model(model, encoder):
    meta = encoder.mteb_model_meta
    assert meta.revision == model_digest(model)
    assert meta.name.startswith("align/")
    assert "/" not in meta.name.removeprefix("align/")  # a folder of mteb's cache
    assert (meta.modalities, meta.embed_dim, meta.max_tokens) == (["image", "text"], 16, None)


def test_what_cannot_be_embedded_is_one_line(encoder):
    with pytest.raises(DataError, match="Foxes: image 1: not an image"):
        _encode(encoder, _inputs(image=[_jpeg(0), b"none"]))
    with pytest.raises(DataError, match="Foxes: inputs of audio: neither image nor text"):
        _encode(encoder, _inputs(audio=[b""]))
    with pytest.raises(ConfigError, match="precision=int8"):
        _encode(encoder, _inputs(text=["a"]), precision="int8")
    assert len(_encode(encoder, _inputs(text=["a"]), precision="float32")) == 1


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_similarity_is_the_cosine(encoder, kind):
    one, other = kind([[3.0, 0.0], [1.0, 1.0]]), kind([[0.0, 2.0], [5.0, 5.0], [1.0, 0.0]])
    half = 0.5**0.5
    assert np.allclose(encoder.similarity(one, other), [[0, half, 1], [half, 1, half]])
    assert np.allclose(encoder.similarity(one[0], other), [[0, half, 1]])
    assert np.allclose(encoder.similarity_pairwise(one, other[:2]), [0, 1])


def test_without_the_tool_the_line_says_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ConfigError, match=r"pip install mteb==2\.26"):
        mteb.load(model)
