"""One pass over a picture's pixels: the NSFW score (rule I1) and the embedding for near-duplicates (rule I5).

The network is Yahoo's open_nsfw, a thin ResNet-50; its file is in `open_nsfw/`, beside its licence. The paper names
neither its classifier nor its embedding model. This one was trained on photographs, not on drawings.

The embedding joins two vectors, each of length 1, so that its cosine is the mean of theirs:

* what is in the picture: the 1,024 pooled features before the classifier. They are never negative, and a few large ones
  dominate their cosine. The square roots of their shares (Hellinger's distance) balance them, and the paper's cut of
  0.975 fits: crops and flips are above it, most other pictures of the same kind below. Centring or whitening would need
  another cut, and a mean that depends on the data.
* where it is: the colours of a 16 x 16 thumbnail, less their mean. By the features alone two flags or two clock faces
  are the same, and a picture and its copy at a third of the size are different.

A thumbnail changes with every crop. There are few evaluation images, so each is a reference in several *views*: whole,
cropped a little in nine ways, and all of these mirrored. The network runs once for all views. (Five crops find 90 % of
the copies that are cropped to 90 % of the area, nine find 99 %.)

For any other network (`filter.near_duplicate_embedder`) the embedding is used unchanged, in one view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from align.config.filter import GivenFile, ModelFile
from align.durable.processes import in_threads
from align.errors import AlignError, CorruptError, DataError
from align.pairs.picture import PictureError, decode

_OPEN_NSFW = Path(__file__).parent / "open_nsfw" / "open_nsfw.onnx"
_OPEN_NSFW_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
#: open_nsfw sees the middle of a square of this side: its colours as blue, green, red, less their means.
_INPUT_PX = 256
_MIDDLE = slice(16, 16 + 224)
_MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)
_INPUT, _SCORES, _POOLED = "input:0", "outputs", "Reshape:0"
_THUMBNAIL_PX = 16
#: A thumbnail (768 values of 0 to 255) that is closer than this to its mean colour counts as one colour.
_FLAT_LENGTH = 30.0
#: Share of each side that a cropped view keeps: two sides of 0.95 are 90 % of the area.
_VIEW_SIDE = 0.95
_SPARE_PX = (1 - _VIEW_SIDE) * _INPUT_PX
Box = tuple[float, float, float, float]
#: Left, top, right, bottom of the views: whole, and cropped at 3 x 3 offsets.
_BOXES: list[Box] = [
    (0.0, 0.0, _INPUT_PX, _INPUT_PX),
    *(
        (left, top, left + _INPUT_PX - _SPARE_PX, top + _INPUT_PX - _SPARE_PX)
        for top in (0.0, _SPARE_PX / 2, _SPARE_PX)
        for left in (0.0, _SPARE_PX / 2, _SPARE_PX)
    ),
]

Embed = Callable[[Image.Image], NDArray[np.float32]]
Out = TypeVar("Out")


@dataclass(frozen=True)
class Measured:
    """The network's results for one picture.

    Attributes:
        name: as given, such as an image_id.
        nsfw_score: 0 clean, 1 pornographic; 3 decimals.
        embedding: (width,) float16, of length 1 (a picture of one colour: 0.71, and it resembles nothing).
    """

    name: str
    nsfw_score: float
    embedding: NDArray[np.float16]


class ImageNetwork:
    """The network, loaded once. A picture's results depend on that picture alone, not on others or on threads.

    Attributes:
        width: length of an embedding.
        digest: hex sha256 of the classifier's file.
    """

    def __init__(self, classifier: GivenFile | None, embedder: ModelFile | None, num_threads: int) -> None:
        """Loads the NSFW classifier, and another embedder if one is given; then two networks run.

        Args:
            classifier: `filter.nsfw_model`; None: open_nsfw.
            embedder: `filter.near_duplicate_embedder`.
            num_threads: pictures that are processed at once.

        Raises:
            DataError: a file is missing, or is not such a network.
            CorruptError: its sha256 is wrong.
        """
        self._num_threads = num_threads
        file = classifier or GivenFile(path=str(_OPEN_NSFW), sha256=_OPEN_NSFW_SHA256)
        self.digest = file.sha256
        self._embed = None if embedder is None else load_embedder(embedder)
        blank = Image.new("RGB", (_INPUT_PX, _INPUT_PX))
        with _says(f"filter.nsfw_model: {file.path}", "as open_nsfw does"):
            self._classifier = _open_nsfw(_checked("filter.nsfw_model", file))
            self.width = len(self._classify(blank)[1]) + 3 * _THUMBNAIL_PX**2
        if self._embed is not None:
            self.width = len(self._embed(blank))

    def measure(self, images: Iterable[tuple[str, bytes]], *, max_pixels: int) -> Iterator[Measured]:
        """Yields the results for each (name, bytes) that decodes, in order; few pictures are in memory at a time."""
        return self._of_each(self._measure, images, max_pixels)

    def views(
        self, images: Iterable[tuple[str, bytes]], *, max_pixels: int
    ) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """Yields (name, (V, width) float16 views), to compare training images with, for each image that decodes.

        A training image resembles this one if its embedding is close to any of the V rows.
        """
        return self._of_each(self._views, images, max_pixels)

    def _of_each(
        self, look: Callable[[str, Image.Image], Out], images: Iterable[tuple[str, bytes]], max_pixels: int
    ) -> Iterator[Out]:
        def result(item: tuple[str, bytes]) -> Out | None:
            try:
                return look(item[0], decode(item[1], max_pixels=max_pixels, hint_px=_INPUT_PX))
            except PictureError:
                return None

        return (one for one in in_threads(result, images, self._num_threads) if one is not None)

    def _measure(self, name: str, image: Image.Image) -> Measured:
        square = image.resize((_INPUT_PX, _INPUT_PX), Image.Resampling.BILINEAR)
        score, pooled = self._classify(square)
        embedding = _join(pooled, _thumbnail(square)) if self._embed is None else self._embed(image)
        return Measured(name, score, embedding.astype(np.float16))

    def _views(self, name: str, image: Image.Image) -> tuple[str, NDArray[np.float16]]:
        if self._embed is not None:
            return name, self._embed(image)[None].astype(np.float16)
        square = image.resize((_INPUT_PX, _INPUT_PX), Image.Resampling.BILINEAR)
        _, pooled = self._classify(square)
        views = [_join(pooled, view) for box in _BOXES for view in _both_ways(square, box)]
        return name, np.stack(views).astype(np.float16)

    def _classify(self, square: Image.Image) -> tuple[float, NDArray[np.float32]]:
        # Without the JPEG round trip of the original's training: scores move by less than 0.01, and it takes a tenth
        # of the time. One picture per call: larger batches are no faster, and results could depend on them.
        pixels = np.asarray(square, dtype=np.float32)[None, _MIDDLE, _MIDDLE, ::-1] - _MEAN_BGR
        scores, pooled = self._classifier.run([_SCORES, _POOLED], {_INPUT: pixels})
        shares = np.sqrt(pooled[0] / max(float(pooled[0].sum()), 1e-6))
        return round(float(scores[0, 1]), 3), shares


def load_embedder(file: ModelFile) -> Embed:
    """A function from a picture to its L2-normalised (D,) embedding, by the network in an ONNX file.

    Raises:
        DataError: the file is missing, or is not a network from (1, 3, px, px) to (1, D).
        CorruptError: its bytes have another sha256.
    """
    where = f"filter.near_duplicate_embedder: {file.path}"
    data = _checked("filter.near_duplicate_embedder", file)
    with _says(where, f"on (1, 3, {file.px}, {file.px}) float32"):
        run = _onnx(data)
        probe = run(np.zeros((1, 3, file.px, file.px), dtype=np.float32))
    if probe.ndim != 2 or len(probe) != 1:
        raise DataError(f"{where}: returns {probe.shape} for one picture; expected (1, D) embeddings")
    mean, std = np.array(file.mean, dtype=np.float32), np.array(file.std, dtype=np.float32)

    def embed(image: Image.Image) -> NDArray[np.float32]:
        square = image.resize((file.px, file.px), Image.Resampling.BILINEAR)
        pixels = (np.asarray(square, dtype=np.float32) / 255 - mean) / std
        embedding = run(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0]
        return np.asarray(embedding / max(float(np.linalg.norm(embedding)), 1e-6), dtype=np.float32)

    return embed


def _checked(parameter: str, file: GivenFile) -> bytes:
    """The content of a network's file."""
    if not Path(file.path).is_file():
        raise DataError(f"{parameter}: {file.path}: no such file; name an .onnx file, or null")
    data = Path(file.path).read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise CorruptError(f"{parameter}: {file.path}: another or a damaged file: sha256 {digest}, not {file.sha256}")
    return data


@contextmanager
def _says(where: str, how: str) -> Iterator[None]:
    """Runtimes raise many types for a network that they cannot load or run."""
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{where}: does not run {how}: {first[0]}") from error


def _open_nsfw(data: bytes) -> Any:
    # Protobuf messages that follow each other are one message, their lists joined (that is the format's definition):
    # ModelProto { graph (7): { output (12): { name (1) } } } adds an output and needs no library.
    name = _field(1, _POOLED.encode())
    return _session(data + _field(7, _field(12, name)))


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field; `number` below 16, `data` below 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads work on different pictures; a sum must not depend on their number
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnx(data: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    session = _session(data)
    name = session.get_inputs()[0].name
    return lambda pixels: np.asarray(session.run(None, {name: pixels})[0])


def _thumbnail(square: Image.Image, box: Box | None = None) -> NDArray[np.float32]:
    """(16, 16, 3) colours of the picture, or of a part of it, less their mean, of length 1.

    All 0 for a picture of one colour: its perceptual hash and its colour describe it fully.
    """
    small = square.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX, box=box)
    pixels = np.asarray(small, dtype=np.float32)
    if np.linalg.norm(pixels - pixels.mean(axis=(0, 1))) < _FLAT_LENGTH:
        return np.zeros_like(pixels)
    centred: NDArray[np.float32] = pixels - pixels.mean()
    return centred / np.float32(np.linalg.norm(centred))


def _both_ways(square: Image.Image, box: Box) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    thumbnail = _thumbnail(square, box)
    return thumbnail, thumbnail[:, ::-1]


def _join(pooled: NDArray[np.float32], thumbnail: NDArray[np.float32]) -> NDArray[np.float32]:
    joined: NDArray[np.float32] = np.concatenate([pooled, thumbnail.ravel()]) * np.float32(np.sqrt(0.5))
    return joined
