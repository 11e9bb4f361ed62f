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
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from align.config.filter import GivenFile, ModelFile
from align.config.infrastructure import Device
from align.durable.processes import in_threads
from align.errors import AlignError, ConfigError, CorruptError, DataError
from align.pairs.picture import PictureError, decode

_OPEN_NSFW = Path(__file__).parent / "open_nsfw" / "open_nsfw.onnx"
_OPEN_NSFW_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
#: open_nsfw sees the middle of a square of this side: its colours as blue, green, red, less their means.
_INPUT_PX = 256
_MIDDLE = slice(16, 16 + 224)
_MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)
_SCORES, _POOLED = "outputs", "Reshape:0"
_CUDA = "CUDAExecutionProvider"
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

Out = TypeVar("Out")
Rows = NDArray[np.float32]
#: Pictures in a call. On a CPU larger batches are no faster.
_BATCH = {"cpu": 1, "cuda": 64}


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


@dataclass(frozen=True)
class _Seen:
    """A picture at 256 x 256, and the networks' inputs: the classifier's, and that of another embedder."""

    name: str
    square: Image.Image
    inputs: list[Rows]


class ImageNetwork:
    """The network, loaded once. A picture's results depend on that picture alone, not on others or on threads.

    Attributes:
        width: length of an embedding.
        digest: hex sha256 of the classifier's file.
    """

    def __init__(
        self, classifier: GivenFile | None, embedder: ModelFile | None, device: Device, num_threads: int
    ) -> None:
        """Loads the NSFW classifier, and another embedder if one is given; then two networks run.

        Args:
            classifier: `filter.nsfw_model`; None: open_nsfw.
            embedder: `filter.near_duplicate_embedder`.
            device: `engine.device`.
            num_threads: pictures that are decoded at once; on a CPU they run through the network there, too.

        Raises:
            ConfigError: onnxruntime cannot use the device.
            DataError: a file is missing, or is not such a network.
            CorruptError: its sha256 is wrong.
        """
        self._num_threads, self._batch = num_threads, _BATCH[device]
        file = classifier or GivenFile(path=str(_OPEN_NSFW), sha256=_OPEN_NSFW_SHA256)
        self.digest = file.sha256
        self._embedder = None if embedder is None else Embedder(embedder, device)
        blank = Image.new("RGB", (_INPUT_PX, _INPUT_PX))
        with _says(f"filter.nsfw_model: {file.path}", "as open_nsfw does"):
            self._classifier = _open_nsfw(_checked("filter.nsfw_model", file), device)
            ((_, pooled),) = self._classify([_middle(blank)])
        self.width = len(pooled) + 3 * _THUMBNAIL_PX**2 if self._embedder is None else self._embedder.width

    def measure(self, images: Iterable[tuple[str, bytes]], *, max_pixels: int) -> Iterator[Measured]:
        """Yields the results for each (name, bytes) that decodes, in order; few pictures are in memory at a time."""
        return self._of_batches(self._measure, images, max_pixels)

    def views(
        self, images: Iterable[tuple[str, bytes]], *, max_pixels: int
    ) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """Yields (name, (V, width) float16 views), to compare training images with, for each image that decodes.

        A training image resembles this one if its embedding is close to any of the V rows.
        """
        return self._of_batches(self._views, images, max_pixels)

    def _of_batches(
        self, look: Callable[[list[_Seen]], list[Out]], images: Iterable[tuple[str, bytes]], max_pixels: int
    ) -> Iterator[Out]:
        def seen(item: tuple[str, bytes]) -> list[_Seen]:
            try:
                return [self._seen(item[0], decode(item[1], max_pixels=max_pixels, hint_px=_INPUT_PX))]
            except PictureError:
                return []

        def looked(item: tuple[str, bytes]) -> list[Out]:
            return look(one) if (one := seen(item)) else []

        if self._batch == 1:  # the threads run the network, too
            return chain.from_iterable(in_threads(looked, images, self._num_threads))
        decoded = chain.from_iterable(in_threads(seen, images, self._num_threads))
        return chain.from_iterable(map(look, iter(lambda: list(islice(decoded, self._batch)), [])))

    def _seen(self, name: str, image: Image.Image) -> _Seen:
        square = image.resize((_INPUT_PX, _INPUT_PX), Image.Resampling.BILINEAR)
        given = [] if self._embedder is None else [self._embedder.input(image)]
        return _Seen(name, square, [_middle(square), *given])

    def _measure(self, batch: list[_Seen]) -> list[Measured]:
        classified = self._classify([one.inputs[0] for one in batch])
        if self._embedder is None:
            embeddings = [_join(row, _thumbnail(one.square)) for one, (_, row) in zip(batch, classified, strict=True)]
        else:
            embeddings = self._embedder([one.inputs[1] for one in batch])
        rows = zip(batch, classified, embeddings, strict=True)
        return [Measured(one.name, score, embedding.astype(np.float16)) for one, (score, _), embedding in rows]

    def _views(self, batch: list[_Seen]) -> list[tuple[str, NDArray[np.float16]]]:
        if self._embedder is not None:
            views = [row[None] for row in self._embedder([one.inputs[1] for one in batch])]
        else:
            views = [
                np.stack([_join(pooled, view) for box in _BOXES for view in _both_ways(one.square, box)])
                for one, (_, pooled) in zip(batch, self._classify([one.inputs[0] for one in batch]), strict=True)
            ]
        return [(one.name, each.astype(np.float16)) for one, each in zip(batch, views, strict=True)]

    def _classify(self, pixels: list[Rows]) -> list[tuple[float, Rows]]:
        """NSFW score and the square roots of the pooled features' shares, of each picture."""
        rows = zip(*_run(self._classifier, [_SCORES, _POOLED], pixels, self._batch), strict=True)
        return [(round(float(score[1]), 3), np.sqrt(each / max(float(each.sum()), 1e-6))) for score, each in rows]


class Embedder:
    """From pictures to L2-normalised (D,) embeddings, by the network in an ONNX file.

    Attributes:
        width: D.
    """

    def __init__(self, file: ModelFile, device: Device) -> None:
        """Loads and tries the network.

        Raises:
            DataError: the file is missing, or is not a network from (1, 3, px, px) to (1, D).
            CorruptError: its bytes have another sha256.
        """
        self._px, self._batch = file.px, _BATCH[device]
        self._mean, self._std = (np.array(each, dtype=np.float32) for each in (file.mean, file.std))
        where = f"filter.near_duplicate_embedder: {file.path}"
        data = _checked("filter.near_duplicate_embedder", file)
        with _says(where, f"on (1, 3, {file.px}, {file.px}) float32"):
            self._session = _session(data, device)
            (probe,) = _run(self._session, None, [np.zeros((3, file.px, file.px), dtype=np.float32)], 1)
        if probe.ndim != 2 or len(probe) != 1:
            raise DataError(f"{where}: returns {probe.shape} for one picture; expected (1, D) embeddings")
        self.width = probe.shape[1]

    def input(self, image: Image.Image) -> Rows:
        """(3, px, px)."""
        square = image.resize((self._px, self._px), Image.Resampling.BILINEAR)
        pixels = (np.asarray(square, dtype=np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def __call__(self, pixels: list[Rows]) -> list[Rows]:
        """The embedding of each input."""
        (rows,) = _run(self._session, None, pixels, self._batch)
        return [np.asarray(row / max(float(np.linalg.norm(row)), 1e-6), dtype=np.float32) for row in rows]


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


def _open_nsfw(data: bytes, device: Device) -> Any:
    # Protobuf messages that follow each other are one message, their lists joined (that is the format's definition):
    # ModelProto { graph (7): { output (12): { name (1) } } } adds an output and needs no library.
    name = _field(1, _POOLED.encode())
    return _session(data + _field(7, _field(12, name)), device)


def _middle(square: Image.Image) -> Rows:
    """The classifier's input, (224, 224, 3).

    Without the JPEG round trip of the original's training: scores move by less than 0.01, and it takes a tenth of the
    time.
    """
    return np.asarray(square, dtype=np.float32)[_MIDDLE, _MIDDLE, ::-1] - _MEAN_BGR


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field; `number` below 16, `data` below 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def require_device(device: Device) -> None:
    """Raises ConfigError where onnxruntime has no provider for it."""
    if device == "cuda" and _CUDA not in onnxruntime.get_available_providers():
        raise ConfigError(
            "engine.device: cuda: this onnxruntime computes on CPUs only; `pip install onnxruntime-gpu`, or set cpu"
        )


def _session(model: bytes, device: Device) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads work on different pictures; a sum must not depend on their number
    options.inter_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        require_device(device)
        onnxruntime.preload_dlls()  # CUDA's libraries from pip, where torch has them
        options.use_deterministic_compute = True
        # float32 as on a CPU, and no search by time for the quickest convolution: it would vary from run to run
        providers.insert(0, (_CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}))
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    if device == "cuda" and _CUDA not in session.get_providers():  # onnxruntime goes to the CPU with a warning
        raise ConfigError("engine.device: cuda: onnxruntime cannot use a card here, as its lines above say; or set cpu")
    return session


def _run(session: Any, outputs: list[str] | None, pixels: list[Rows], batch: int) -> list[Rows]:
    """The outputs for any number of pictures, in calls of the network's own number, or else of `batch`.

    Every call has that many, the last one filled up: another number could be computed in another way.
    """
    (given,) = session.get_inputs()
    size = given.shape[0] if isinstance(given.shape[0], int) else batch
    parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    done = [session.run(outputs, {given.name: np.stack((part * size)[:size])}) for part in parts]
    return [np.concatenate(each)[: len(pixels)] for each in zip(*done, strict=True)]


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
