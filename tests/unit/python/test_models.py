import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align.cli import main
from align.errors import ConfigError, DataError
from align.formats.model_folder import model_digest
from align.model.preprocess import centre_crop, decode
from align.python.models import file_of, load
from tests.support import evaluation_sets, own_model, tiny_model
from tests.support.params import PARAMS_FILE
from tests.support.tiny_model import TINY


def test_a_model_folder_and_the_same_model_packaged(tmp_path):
    model = tiny_model.write(tmp_path)
    packaged = tmp_path / "packaged"
    shutil.copytree(model, packaged / "artifacts" / "finetuned")
    (packaged / "MLmodel").write_text("flavors: {}\n")
    plain, held = load(model), load(str(packaged))
    assert plain.digest == held.digest == model_digest(model)
    assert plain.name.endswith("-model")
    assert held.name.endswith("-packaged")
    shutil.copytree(model, packaged / "artifacts" / "another")
    with pytest.raises(DataError, match="no model here"):
        load(packaged)


def test_a_name_is_fit_for_a_file(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = tiny_model.write(tmp_path)
    for hostile in ("../m o d e l", "-rf", "$(touch x)", "m" * 200):
        model = shutil.move(model, hostile)
        name = load(hostile).name
        assert name and len(name) <= 60 and not name.startswith(("-", "."))
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")


def test_pictures_texts_and_their_similarity(tmp_path):
    """By path, bytes, Pillow and array; one or many; inputs or embeddings."""
    model, file = load(tiny_model.write(tmp_path)), tmp_path / "a.png"
    file.write_bytes(_file(_noise("RGB")))
    rows = model.embed_images([file, str(file), file.read_bytes(), _noise("RGB"), np.asarray(_noise("RGB"))])
    assert rows.shape == (5, model.width) and np.allclose(np.linalg.norm(rows, axis=1), 1)
    assert (rows == rows[0]).all()
    for one in (file, str(file), file.read_bytes(), _noise("RGB"), np.asarray(_noise("RGB"))):
        assert np.allclose(model.embed_images(one), rows[:1], atol=1e-6)
    texts = model.embed_texts(["a red heart", "a"])
    assert np.allclose(model.embed_texts("a"), texts[1:], atol=1e-6)
    cosines = model.similarity([file], ["a red heart", "a"])
    assert np.allclose(cosines, rows[:1] @ texts.T, atol=1e-6)
    assert np.allclose(model.similarity(rows[:1].astype(np.float64), texts), cosines, atol=1e-6)
    cases = [
        ([file, "gone.png"], "image 1: gone.png: No such file"), ([1], "image 0: not a picture but int"),
        (np.zeros((1, 2, 2), np.float32), "an array"),
    ]  # fmt: skip
    for given, words in cases:
        with pytest.raises(DataError, match=words):
            model.embed_images(given)
    for wrong in (None, b"a"):
        with pytest.raises(DataError, match="text 0: not a string but"):
            model.embed_texts(wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(DataError, match="image 0: not a picture but NoneType"):
        model.embed_images(None)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(DataError, match="text 1: not a string but NoneType"):
        model.embed_texts(["a", None])  # type: ignore[list-item]  # wrong on purpose


def test_a_model_of_transformers_is_one(tmp_path):
    own_model.write_align_base(tmp_path)
    model = load(tmp_path / "align-base")
    assert model.embed_texts("a red fox").shape == (1, model.width)


def test_measured_as_the_command_does(tmp_path, monkeypatch):
    """With the settings of params.yaml; without a folder for reports nothing is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tiny_model.write(tmp_path)
    for name in ("pairs", "classes"):
        evaluation_sets.write_coloured_set(tmp_path / "sets", name)
    model = load(folder)
    Path("suite.yaml").write_text(SUITE)
    before = sorted(tmp_path.iterdir())
    report = model.evaluate("suite.yaml")
    assert sorted(tmp_path.iterdir()) == before
    told = ["evaluate", "--params", str(PARAMS_FILE), "--model", str(folder), "--reports", "reports"]
    assert main([*told, "--set", "paths.evaluation=suite.yaml"]) == 0
    assert report.metrics == json.loads((tmp_path / "reports/metrics.json").read_text())
    of_folder = model.evaluate("sets", reports="mine")
    name = "pairs/image_to_text/recall@1"
    assert of_folder.metrics[name] == report.metrics[name] and (tmp_path / "mine/report.html").is_file()
    assert report.model["digest"] == model.digest
    Path("tuned.yaml").write_text(SUITE.replace("zero_shot", "zero_shot, fine_tuning"))
    with pytest.raises(ConfigError, match=r"tuned\.yaml: task fine_tuning is measured by `align evaluate --model`"):
        model.evaluate("tuned.yaml")


SUITE = """
sets:
  - {name: pairs, format: align, path: sets/pairs.json, tasks: [retrieval]}
  - {name: classes, format: align, path: sets/classes.json, tasks: [zero_shot]}
"""


def test_a_model_that_took_the_place_of_another_has_another_digest(tmp_path):
    first = load(tiny_model.write(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    second = load(tiny_model.write(tmp_path / "a", seed=1))
    assert first.name == second.name
    assert first.digest != second.digest


def test_what_is_no_model_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        ("gone", DataError, "gone: no such folder"),
        (".", DataError, "no model here"),
        ("models:/align", DataError, "write models:/align@champion"),
        ("models:/align/0", DataError, "not a version"),
        ("models:/a/b/c@champion", DataError, "not a version"),
        ("models:/align@champion", DataError, "no MLflow here"),
    ]
    for source, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            load(source)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "mlflow.db").exists()


def _noise(mode, size=(50, 40)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels != 3 else None)


def _file(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def crop(picture, config):
    return centre_crop(decode(file_of(picture), config.resize_px), config.image_px)


def _ours(data):
    return centre_crop(decode(data, TINY.resize_px), TINY.image_px)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_a_picture_of_pillow_has_the_pixels_of_its_file(mode):
    picture = _noise(mode)
    assert np.array_equal(crop(picture, TINY), _ours(_file(picture)))


def test_what_png_does_not_hold_becomes_rgb():
    picture = _noise("RGB").convert("CMYK")
    assert np.array_equal(crop(picture, TINY), _ours(_file(picture.convert("RGB"))))


def test_a_picture_of_pillow_is_turned_upright_as_its_file_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file(_noise("RGB"), "JPEG", exif=exif, quality=95)
    assert not np.array_equal(_ours(data), _ours(_file(Image.open(io.BytesIO(data)))))
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(crop(opened, TINY), _ours(data))
    assert np.array_equal(crop(opened.convert("RGB"), TINY), _ours(data))


def test_bytes_are_the_file_also_where_we_decode_at_half_its_size():
    data = _file(_noise("RGB", (400, 300)), "JPEG", quality=95)
    exact = _ours(data)
    assert np.array_equal(crop(data, TINY), exact)
    assert np.array_equal(crop({"bytes": data, "path": None}, TINY), exact)
    assert not np.array_equal(crop(Image.open(io.BytesIO(data)), TINY), exact)  # why tools' bytes are asked for


def test_an_undecoded_picture_of_datasets_may_be_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(_file(_noise("RGB")))
    assert np.array_equal(crop({"bytes": None, "path": str(tmp_path / "a.png")}, TINY), crop(_noise("RGB"), TINY))
    with pytest.raises(DataError, match=r"b\.png: No such file"):
        crop({"bytes": None, "path": str(tmp_path / "b.png")}, TINY)


@pytest.mark.parametrize(("given", "words"), [
    (b"", "not an image"), (_file(_noise("RGB"))[:200], "not an image"), (None, "not a picture but NoneType"),
    ({"bytes": None, "path": None}, "not a picture but dict"), ([[1, 2]], "not a picture but list"),
], ids=["empty", "truncated", "nothing", "no-bytes", "numbers"])  # fmt: skip
def test_what_is_no_picture_is_one_line(given, words):
    with pytest.raises(DataError, match=words) as caught:
        crop(given, TINY)
    assert "\n" not in str(caught.value)
