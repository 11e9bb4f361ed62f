import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align.adapters.models import file_of, open_model
from align.config.model import ModelConfig
from align.errors import AlignError, DataError, FormatError
from align.formats.model_folder import model_digest
from align.model.preprocess import centre_crop, decode
from tests.support import own_model, tiny_model
from tests.support.tiny_model import TINY


def test_a_model_folder_and_the_same_model_packaged(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path)
    packaged = tmp_path / "packaged"
    shutil.copytree(model, packaged / "artifacts" / "finetuned")
    (packaged / "MLmodel").write_text("flavors: {}\n")
    plain, held = open_model(model), open_model(str(packaged))
    assert plain.digest == held.digest == model_digest(model)
    assert plain.name.endswith("-model")
    assert held.name.endswith("-packaged")
    shutil.copytree(model, packaged / "artifacts" / "another")
    with pytest.raises(DataError, match="2 model folders among the artifacts"):
        open_model(packaged)


@pytest.mark.parametrize("hostile", ["../m o d e l", "-rf", "$(touch x)", "m" * 200])
def test_a_name_is_fit_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path(hostile).parent.mkdir(exist_ok=True)
    shutil.move(tiny_model.write(tmp_path), hostile)
    name = open_model(hostile).name
    assert name
    assert not name.startswith(("-", "."))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert len(name) <= 60


def test_a_model_that_took_the_place_of_another_has_another_digest(tmp_path: Path) -> None:
    first = open_model(tiny_model.write(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    second = open_model(tiny_model.write(tmp_path / "a", seed=1))
    assert first.name == second.name
    assert first.digest != second.digest


def test_what_is_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own_model.write_align_base(tmp_path)
    cases: list[tuple[str, type[AlignError], str]] = [
        ("gone", DataError, "gone: no such folder"),
        (".", DataError, "no model here"),
        ("align-base", FormatError, "align import_model"),
        ("models:/align", DataError, "write models:/align@champion"),
        ("models:/align/0", DataError, "not a version"),
        ("models:/a/b/c@champion", DataError, "not a version"),
        ("models:/align@champion", DataError, "no MLflow here"),
    ]
    for source, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            open_model(source)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "mlflow.db").exists()


def _noise(mode: str, size: tuple[int, int] = (50, 40)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels != 3 else None)


def _file(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def crop(picture: Any, config: ModelConfig) -> np.ndarray:
    return centre_crop(decode(file_of(picture), config.resize_px), config.image_px)


def _ours(data: bytes) -> np.ndarray:
    return centre_crop(decode(data, TINY.resize_px), TINY.image_px)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_a_picture_of_pillow_has_the_pixels_of_its_file(mode: str) -> None:
    picture = _noise(mode)
    assert np.array_equal(crop(picture, TINY), _ours(_file(picture)))


def test_what_png_does_not_hold_becomes_rgb() -> None:
    picture = _noise("RGB").convert("CMYK")
    assert np.array_equal(crop(picture, TINY), _ours(_file(picture.convert("RGB"))))


def test_a_picture_of_pillow_is_turned_upright_as_its_file_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file(_noise("RGB"), "JPEG", exif=exif, quality=95)
    assert not np.array_equal(_ours(data), _ours(_file(Image.open(io.BytesIO(data)))))
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(crop(opened, TINY), _ours(data))
    assert np.array_equal(crop(opened.convert("RGB"), TINY), _ours(data))


def test_bytes_are_the_file_also_where_we_decode_at_half_its_size() -> None:
    data = _file(_noise("RGB", (400, 300)), "JPEG", quality=95)
    exact = _ours(data)
    assert np.array_equal(crop(data, TINY), exact)
    assert np.array_equal(crop({"bytes": data, "path": None}, TINY), exact)
    assert not np.array_equal(crop(Image.open(io.BytesIO(data)), TINY), exact)  # why tools' bytes are asked for


def test_an_undecoded_picture_of_datasets_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_file(_noise("RGB")))
    assert np.array_equal(crop({"bytes": None, "path": str(tmp_path / "a.png")}, TINY), crop(_noise("RGB"), TINY))
    with pytest.raises(DataError, match=r"b\.png: No such file"):
        crop({"bytes": None, "path": str(tmp_path / "b.png")}, TINY)


@pytest.mark.parametrize(
    ("given", "words"),
    [(b"", "not an image"), (_file(_noise("RGB"))[:200], "not an image"), (None, "not a picture but NoneType"),
     ({"bytes": None, "path": None}, "not a picture but dict"), ([[1, 2]], "not a picture but list")],
    ids=["empty", "truncated", "nothing", "no-bytes", "numbers"],
)  # fmt: skip
def test_what_is_no_picture_is_one_line(given: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        crop(given, TINY)
    assert "\n" not in str(caught.value)
