"""mteb, open_clip and CLIP_benchmark themselves, in an environment of their own, against our figures of the same sets.

The pictures are JPEGs that we decode at half their size, and the sets have several captions a picture.
"""

import io
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import TarWriter

from align.cli import main
from align.config.model import ModelConfig
from align.evaluate.protocols.retrieval import best_ranks
from align.evaluate.protocols.zero_shot import class_embeddings, predictions, prompts
from align.formats.model_folder import read_config
from align.model.dual_encoder import DualEncoder, save_model
from align.model.embedder import Embedder, load_with_tokenizer
from align.model.image_tower import estimate_statistics
from tests.support import ROOT, small_model
from tests.support.params import PARAMS_FILE
from tests.support.peers import tools, whole
from tests.support.tars import samples

pytestmark = [pytest.mark.tools, pytest.mark.timeout(1800)]  # installs mteb and CLIP_benchmark

CLASSES = ["red fox", "grey owl", "snow", "picture", "two", "a"]
TEMPLATES = ["a picture of {}", "two {}", "{} in the snow"]


@pytest.fixture(scope="module", name="python")
def _python():
    return tools()


def _picture(seed, kind="JPEG"):
    """Soft blots, 230 x 170: the tests' models read 72 px, so that we decode a JPEG at half the size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((230, 170)).save(buffer, kind, quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module", name="root")
def _root(tmp_path_factory):
    """A model, and three sets in CLIP_benchmark's layout: `classes`, `captions` and, of PNG files, `pairs`."""
    root = tmp_path_factory.mktemp("tools")
    torch.manual_seed(0)
    folder = small_model.write(root)
    small_model.tell_apart(folder, map(_picture, range(32)))
    # words that the model knows: texts that it cannot tell apart would tie, and tools rank equal texts as they come
    endings = ("snow", "owl", "picture")
    words = [f"{template.format(name)} {end}" for template in TEMPLATES for name in CLASSES for end in endings]
    for name, splits in (("classes", ("train", "test")), ("captions", ("test",)), ("pairs", ("test",))):
        for split in splits:
            (root / name / split).mkdir(parents=True)
            (root / name / split / "nshards.txt").write_text("1")
    (root / "classes/classnames.txt").write_text("\n".join(CLASSES))
    templates = "\n".join(template.format("{c}") for template in TEMPLATES)
    (root / "classes/zeroshot_classification_templates.txt").write_text(templates)
    (root / "captions/dataset_type.txt").write_text("retrieval")
    for split, seed in (("train", 1000), ("test", 0)):
        with TarWriter(str(root / "classes" / split / "0.tar")) as tar:
            for number in range(36):
                row = {"__key__": f"p{number:03d}", "jpg": _picture(seed + number), "cls": number % len(CLASSES)}
                tar.write(row)
    with TarWriter(str(root / "captions/test/0.tar")) as tar:
        for number in range(24):
            tar.write({"__key__": f"p{number:03d}", "jpg": _picture(number), "txt": "\n".join(words[2 * number :][:2])})
    with TarWriter(str(root / "pairs/test/0.tar")) as tar:
        for number in range(36):
            tar.write({"__key__": f"p{number:03d}", "png": _picture(number, "PNG"), "txt": words[number]})
    return root


@pytest.fixture(scope="module", name="ours")
def _ours(root):
    model = Embedder.load(root / "models/finetuned")
    return _figures(root, model, model.embed_images)


def _figures(root, model, embed):
    """Figure -> share, by our own functions on the same files."""
    labels = [number % len(CLASSES) for number in range(36)]
    images = embed(_picture(number) for number in range(36))
    found = {}
    for name, templates in (("ensemble", TEMPLATES), ("one prompt", TEMPLATES[:1])):
        classes = class_embeddings(model.embed_texts(prompts(CLASSES, templates)), len(CLASSES))
        found[name] = float(np.mean(predictions(images, classes) == labels))
    stored = samples(root / "captions/test/0.tar").values()
    rows = [(number, text) for number, row in enumerate(stored) for text in row["txt"].decode().splitlines()]
    assert len({text for _, text in rows}) == 48
    owners, texts = np.array([number for number, _ in rows]), model.embed_texts([text for _, text in rows])
    assert len(np.unique(texts, axis=0)) == 48
    of_image = [np.flatnonzero(owners == number) for number in range(24)]
    to_texts = best_ranks(images[:24], texts, of_image, range(24)).ranks
    to_images = best_ranks(texts, images[:24], [np.array([owner]) for owner in owners], owners.tolist()).ranks
    found |= {f"i2t@{k}": float(np.mean(to_texts <= k)) for k in (1, 5, 10)}
    found |= {f"t2i@{k}": float(np.mean(to_images <= k)) for k in (1, 5, 10)}
    couples = samples(root / "pairs/test/0.tar").values()
    one = embed(row["png"] for row in couples).reshape(18, 2, -1)
    other = model.embed_texts([row["txt"].decode() for row in couples]).reshape(18, 2, -1)
    nearer = np.einsum("niw,ntw->nit", one, other)
    text = (nearer[:, 0, 0] > nearer[:, 0, 1]) & (nearer[:, 1, 1] > nearer[:, 1, 0])
    image = (nearer[:, 0, 0] > nearer[:, 1, 0]) & (nearer[:, 1, 1] > nearer[:, 0, 1])
    return found | {"text": float(text.mean()), "image": float(image.mean()), "both": float((text & image).mean())}


def _run(python, folder, *command):
    """Runs the interpreter of the tools, offline; what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), *command], cwd=folder, env=env, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _export(model, out):
    images, words = out.with_name("images"), out.with_name("texts.txt")
    images.mkdir()
    (images / "0.png").write_bytes(_picture(0, "PNG"))
    words.write_text("\n".join(small_model.TEXTS))
    given = ["--model", str(model), "--images", str(images), "--texts", str(words), "--out", str(out)]
    assert main(["export", "--params", str(PARAMS_FILE), "--format", "open_clip", *given]) == 0


#: Two towers that timm lacks, with and without a projection; one that it has; cc3m's, at the size below its own.
SHAPES = {
    "small": ({}, 64),
    "native": ({"embed_width": 80, "logit_bias_init": -10.0}, 64),
    "timm": ({"image_tower": "timm:test_convnext", "embed_width": 48}, 64),
    "cc3m": ({"image_tower": "B3", "text_tower": "Mini", "embed_width": 640, "resize_px": 346, "image_px": 289}, 288),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_open_clip_computes_the_same_embeddings(python, root, tmp_path, shape):
    changes, px = SHAPES[shape]
    folder = tmp_path / "model"
    shutil.copytree(root / "models/finetuned", folder)
    config = ModelConfig.model_validate(read_config(folder).model.model_dump(mode="json") | changes)
    torch.manual_seed(0)
    model = DualEncoder(config, read_config(folder).vocab_size).eval()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.bias, std=0.3)
        torch.nn.init.normal_(norm.weight, mean=1.0, std=0.1)
    torch.nn.init.normal_(model.text_projection.bias)
    pixels = torch.randn(16, 3, px, px)
    estimate_statistics(model.vision_model, [pixels])
    save_model(model, folder, stage="pretrain")
    _export(folder, tmp_path / "out")
    model, tokenizer = load_with_tokenizer(folder)
    texts = [*small_model.TEXTS, "fox", "an owl " * 100]
    ids, mask = tokenizer(texts)
    np.savez(tmp_path / "in.npz", pixels=pixels, texts=texts)
    files = [str(tmp_path / name) for name in ("out", "in.npz", "out.npz")]
    _run(python, root, "-m", "tests.support.open_clip_embeds", *files)
    theirs = np.load(tmp_path / "out.npz")
    assert np.array_equal(theirs["tokens"][:, : ids.shape[1]], ids) and not theirs["tokens"][:, ids.shape[1] :].any()
    with torch.inference_mode():
        assert np.abs(theirs["image"] - model.encode_image(pixels).numpy()).max() < 1e-5
        assert np.abs(theirs["text"] - model.encode_text(ids, mask).numpy()).max() < 1e-5
    assert theirs["scale"] == pytest.approx(1 / model.temperature.item())


def test_a_model_of_open_clip_is_measured_as_it_is(python, tmp_path):
    said = _run(python, tmp_path, "-m", "tests.support.open_clip_models", str(tmp_path / "model"))
    assert float(said) < 1e-6


def _clip_benchmark(python, root, *options):
    chosen = ("--model", "local-dir:exported", "--pretrained", "ours", "--no_amp", "--num_workers", "0")
    _run(python.with_name("clip_benchmark"), root, "eval", *chosen, *options, "--output", "out.json")
    return json.loads((root / "out.json").read_text())


def test_clip_benchmark_measures_what_we_measure(python, root):
    """Of whole pictures, as open_clip resizes them."""
    _export(root / "models/finetuned", root / "exported")
    model = Embedder.load(root / "models/finetuned")
    ours = _figures(root, model, lambda pictures: model.embed_pixels(whole(each, 64) for each in pictures))
    task = ("--dataset", "wds/classes", "--dataset_root", "classes", "--task", "zeroshot_classification")
    found = _clip_benchmark(python, root, *task)
    assert found["metrics"]["acc1"] == pytest.approx(ours["ensemble"], abs=1e-6)
    task = ("--dataset", "wds/captions", "--dataset_root", "captions", "--task", "zeroshot_retrieval")
    metrics = _clip_benchmark(python, root, *task, "--recall_k", "1", "5", "10")["metrics"]
    for k in (1, 5, 10):
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"i2t@{k}"], abs=1e-6)
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"t2i@{k}"], abs=1e-6)
    assert len(set(metrics.values())) > 3  # figures that say something


def test_mteb_measures_what_we_measure(python, root, ours):
    said = _run(python, root, "-m", "tests.support.mteb_tasks", "models/finetuned", "classes", "captions", "pairs")
    scores = json.loads(said.splitlines()[-1])
    assert scores["ZeroShot"]["accuracy"] == pytest.approx(ours["one prompt"], abs=1e-5)
    for k in (1, 5, 10):
        assert scores["TextsForImages"][f"hit_rate_at_{k}"] == pytest.approx(ours[f"i2t@{k}"], abs=1e-5)
        assert scores["ImagesForTexts"][f"hit_rate_at_{k}"] == pytest.approx(ours[f"t2i@{k}"], abs=1e-5)
    assert 0 < scores["Probe"]["accuracy"] < 1
    for score, figure in (("text_acc", "text"), ("image_acc", "image"), ("accuracy", "both")):
        assert scores["Pairs"][score] == pytest.approx(ours[figure], abs=1e-5)
    assert 0 < ours["text"] < 1  # a figure that says something
