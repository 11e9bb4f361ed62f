"""CLIP_benchmark's side is a stand-in of what the adapter uses; tests/integration/test_adapters.py has the real one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align.adapters import clip_benchmark
from align.adapters.models import NamedModel, open_model
from align.errors import ConfigError, DataError
from align.model.embedder import Embedder
from tests.support import tiny_model


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(name="named")
def _named(model: Path) -> NamedModel:
    return open_model(model)


def _jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_embeddings_are_those_of_the_embedder(model: Path, named: NamedModel) -> None:
    towers, transform, tokenizer = clip_benchmark.load(named)
    ours = Embedder.load(model)
    files = [_jpeg(seed) for seed in range(3)]
    pixels = torch.stack([transform(file) for file in files])
    assert pixels.shape == (3, 3, 32, 32)
    with torch.no_grad():
        assert np.allclose(towers.encode_image(pixels), ours.embed_images(files), atol=1e-6)
        texts = ["a red heart", "a [PAD] star", "the " * 40, ""]
        tokens = tokenizer(texts)
        assert tokens.shape == (4, 2, 16)  # at most max_tokens
        assert np.allclose(towers.encode_text(tokens), ours.embed_texts(texts), atol=1e-6)
        assert np.allclose(towers.encode_text(tokenizer(texts[:1])), ours.embed_texts(texts[:1]), atol=1e-6)


def test_a_callers_autocast_rounds_nothing(named: NamedModel) -> None:
    towers, transform, tokenizer = clip_benchmark.load(named)
    pixels, tokens = transform(_jpeg(0))[None], tokenizer(["a red heart"])
    with torch.no_grad():
        exact = towers.encode_image(pixels), towers.encode_text(tokens)
        with torch.autocast("cpu"):
            cast = towers.encode_image(pixels), towers.encode_text(tokens)
    assert all(torch.equal(one, other) for one, other in zip(exact, cast, strict=True))


@pytest.fixture(name="theirs")
def _theirs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """clip_benchmark 1.6.2, as far as it is used; `do` is what its command does with a loaded model."""
    models, cli, package = (
        ModuleType("clip_benchmark.models"),
        ModuleType("clip_benchmark.cli"),
        ModuleType("clip_benchmark"),
    )
    types = ["open_clip"]
    functions: dict[str, Callable[..., Any]] = {}
    seen = SimpleNamespace(do=lambda *_: None, argv=[], types=types, functions=functions, numpy=lambda: None)

    def main() -> None:
        seen.argv = sys.argv[1:]
        kind = sys.argv[sys.argv.index("--model_type") + 1]
        assert kind in types  # its parser's choices
        name = sys.argv[sys.argv.index("--pretrained") + 1]
        seen.do(*functions[kind](model_name="align", pretrained=name, cache_dir=None, device="cpu"))

    def accuracy(logits: Any, target: Any) -> list[float]:
        seen.numpy()
        return [1.0]

    metrics = ModuleType("clip_benchmark.metrics")
    vars(metrics)["zeroshot_classification"] = SimpleNamespace(accuracy=accuracy)
    vars(models).update(TYPE2FUNC=functions, MODEL_TYPES=types)
    vars(cli)["main"] = main
    vars(package).update(models=models, cli=cli)
    for module in (package, models, cli, metrics):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_their_command_gets_the_model_and_the_files_bytes(model: Path, theirs: SimpleNamespace) -> None:
    from webdataset import autodecode

    theirs_decoder = autodecode.ImageHandler
    crops = []

    def do(towers: Any, transform: Any, tokenizer: Any) -> None:
        towers.eval()
        decoder = autodecode.ImageHandler("pil", extensions=["webp", "png", "jpg", "jpeg"])
        assert decoder("cls", b"3") is None
        assert decoder(".JPG", b"file") == b"file"
        crops.append(transform(decoder("a.jpg", _jpeg(0))))

    theirs.do = do
    before = list(sys.argv)
    assert clip_benchmark.main([str(model), "--dataset", "wds/x", "--recall_k", "1", "5"]) == 0
    assert len(crops) == 1
    assert autodecode.ImageHandler is theirs_decoder
    assert (sys.argv, theirs.types, theirs.functions) == (before, ["open_clip"], {})
    name = theirs.argv[theirs.argv.index("--pretrained") + 1]
    assert name.endswith(open_model(model).digest[:12])
    assert "/" not in name  # it is part of a file's name
    assert theirs.argv[0] == "eval"
    assert "--no_amp" in theirs.argv
    assert theirs.argv[-5:] == ["--dataset", "wds/x", "--recall_k", "1", "5"]


def test_a_picture_that_does_not_decode_is_one_line(
    model: Path, theirs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    from webdataset import autodecode

    theirs_decoder = autodecode.ImageHandler
    theirs.do = lambda _, transform, __: transform(b"no picture")
    assert clip_benchmark.main([str(model)]) == 1
    assert capsys.readouterr().err.startswith("align: error: not an image that can be decoded")
    assert autodecode.ImageHandler is theirs_decoder
    assert theirs.types == ["open_clip"]

    def worker(*_: Any) -> None:  # as torch tells of an error in a worker of its loader
        raise DataError("Caught DataError in DataLoader worker process 0.\nOriginal Traceback:\n...\nDataError: bad\n")

    theirs.do = worker
    assert clip_benchmark.main([str(model)]) == 1
    assert capsys.readouterr().err == "align: error: DataError: bad\n"


@pytest.mark.parametrize("option", ["--model", "--pretrained=x", "--model_type", "--pretrained_model"])
def test_the_model_is_named_once(model: Path, theirs: SimpleNamespace, option: str) -> None:
    with pytest.raises(ConfigError, match="leave this option out"):
        clip_benchmark.run(str(model), [option, "x"])
    assert theirs.argv == []


def test_without_the_tool_the_line_says_how_to_get_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark", None)
    with pytest.raises(ConfigError, match=r"pip install clip-benchmark==1\.6\.2"):
        clip_benchmark.run(str(model), [])


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--dataset", "x"], 2), (["--help"], 0)])
def test_usage(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert clip_benchmark.main(arguments) == code
    assert "usage: python -m align.adapters.clip_benchmark MODEL" in capsys.readouterr().err


def test_a_numpy_that_the_tool_does_not_work_with_is_said_before_the_work(model: Path, theirs: SimpleNamespace) -> None:
    def numpy() -> None:
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

    theirs.numpy = numpy
    with pytest.raises(ConfigError, match=r'does not work with NumPy .*"numpy<2\.4"'):
        clip_benchmark.run(str(model), [])
    assert (theirs.argv, theirs.types) == ([], ["open_clip"])
