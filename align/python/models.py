"""A model for notebooks, scripts and other people's tools: `align.load`.

Where a picture's file is given, as a path or bytes, the pixels are those of `align evaluate`. A picture that somebody
decoded is nearly the same: we decode large JPEGs at a half or a quarter of their size, which differs by some grey
levels, and what lies behind transparent pixels is lost if it was made opaque.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from align.errors import ConfigError, DataError
from align.formats.model_folder import model_digest, unpacked
from align.model.embedder import Crop, Embedder, Embeddings
from align.search.given_model import model_files

if TYPE_CHECKING:
    from align.evaluate.report import EvaluateReport

#: A picture: the path of its file, the file's bytes, Pillow's, an array, or an undecoded one of the library `datasets`.
Picture = str | Path | bytes | Image.Image | NDArray[np.uint8] | Mapping[str, Any]

#: A name is a part of file names; two models of one name have different digests.
_LONGEST = 60


class Model:
    """A dual encoder with its tokenizer and preprocessing; `load` makes it.

    Attributes:
        name: for tables and file names: letters, digits, dots, dashes and underscores.
        digest: hex sha256 of what decides an embedding.
        width: length of an embedding.
        temperature: learned; similarities are divided by it before a softmax.
        embedder: what it is made of, for code that already has crops.
    """

    def __init__(self, embedder: Embedder, name: str, digest: str) -> None:
        self.embedder, self.name, self.digest = embedder, name, digest
        self.width, self.temperature = embedder.width, embedder.temperature

    def __repr__(self) -> str:
        return f"<align.Model {self.name}, digest {self.digest[:12]}, {self.width} wide>"

    def embed_images(self, images: Picture | Iterable[Picture]) -> Embeddings:
        """Embeds pictures, read one batch at a time.

        Args:
            images: one picture or many: paths, files' bytes, Pillow's pictures, (H, W, 3) or (H, W) uint8 arrays.

        Returns:
            (num_images, width) float32, L2-normalised rows.

        Raises:
            DataError: one cannot be read or decoded; the message has its position.
        """
        many: Any = [images] if _is_one(images) else images
        return self.embedder.embed_pixels(crops(self.embedder, many, "image"))

    def embed_texts(self, texts: str | Iterable[str]) -> Embeddings:
        """Embeds one text or many: (num_texts, width) float32, L2-normalised rows.

        Raises:
            DataError: one is not a string.
        """
        many: list[Any] = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else [texts]
        for position, text in enumerate(many):
            if not isinstance(text, str):
                raise DataError(f"text {position}: not a string but {type(text).__name__}")
        return self.embedder.embed_texts(many)

    def similarity(self, images: Any, texts: Any) -> NDArray[np.float32]:
        """Cosines of all pictures with all texts.

        Args:
            images: as for `embed_images`, or embeddings: (num_images, width), of any floating type.
            texts: as for `embed_texts`, or embeddings.

        Returns:
            (num_images, num_texts) float32.
        """
        rows = images if _are_rows(images) else self.embed_images(images)
        columns = texts if _are_rows(texts) else self.embed_texts(texts)
        return np.asarray(rows @ columns.T, dtype=np.float32)

    def evaluate(self, sets: str | Path, *, reports: str | Path | None = None) -> EvaluateReport:
        """Measures the model as `align evaluate --model` does.

        Args:
            sets: a folder of evaluation sets, or a suite (.yaml). Settings are those of params.yaml here, or of the one
                that `align init` writes.
            reports: a folder for the page, its pictures and the ranks of all queries; replaced whole. None: they are
                not kept.

        Returns:
            The report: `.metrics` maps `SET/METRIC` to a share, with `/low`, `/high` and `/chance`.

        Raises:
            DataError, CorruptError, FormatError, ConfigError: a set, a suite or params.yaml is missing or wrong, or the
                suite asks for `fine_tuning`, which keeps checkpoints in a checkout.
        """
        from align.config import load_params
        from align.config.evaluate import EvaluateConfig
        from align.config.infrastructure import StoreConfig
        from align.evaluate.embed import LoadedTowers
        from align.evaluate.evaluate import SuiteNeeds, evaluate
        from align.formats.evaluation_sets.named import named_sets
        from align.services.files.files import StoreFiles

        params = load_params()
        files = StoreFiles(params.section(StoreConfig))
        found = named_sets(Path(sets), files)
        if any(one.asked is not None and "fine_tuning" in one.asked.tasks for one in found):
            raise ConfigError(f"{sets}: task fine_tuning is measured by `align evaluate --model`, which can be killed")
        kept = nullcontext(str(reports)) if reports is not None else TemporaryDirectory(prefix="align-")
        with kept as folder:
            return evaluate(
                params.section(EvaluateConfig),
                encoder=LoadedTowers(self.embedder),
                sets=found,
                reports=Path(folder) / ("" if reports is not None else "report"),
                model={"folder": self.name, "digest": self.digest},
                suite=SuiteNeeds(files),
            )


def load(source: str | Path) -> Model:
    """Loads a model; on the GPU if there is one.

    Args:
        source: a model folder of ours, of transformers (CLIP, SigLIP, ALIGN) or of open_clip; a packaged model's
            folder; or a version of the registry that MLFLOW_TRACKING_URI names: `models:/align@champion`,
            `models:/align/3`.

    Raises:
        DataError: there is no such model, or it is damaged.
        FormatError: it is of another version.
        ConfigError: a library that it needs is not installed.
        ServiceError, RefusedError: MLflow cannot be reached, or refuses.
    """
    with model_files(str(source)) as folder:
        directory = unpacked(folder)
        return Model(Embedder.load(directory), _slug(str(source)), model_digest(directory))


def crops(embedder: Embedder, pictures: Iterable[Any], what: str) -> Iterator[Crop]:
    """The pixels that a model sees, see `Picture`. Raises DataError, which begins with `what` and the position."""
    for position, picture in enumerate(pictures):
        try:
            yield embedder.crop(file_of(picture))
        except DataError as error:
            raise DataError(f"{what} {position}: {error}") from None


def _slug(source: str) -> str:
    parts = [source.removeprefix("models:/")] if source.startswith("models:") else Path(source).resolve().parts[-2:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")[:_LONGEST] or "model"


def _is_one(images: Any) -> bool:
    is_array = isinstance(images, np.ndarray)
    single = isinstance(images, (str, Path, bytes, Image.Image, Mapping)) or not isinstance(images, Iterable)
    return single or (is_array and images.ndim < 4)


def _are_rows(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.ndim == 2 and np.issubdtype(given.dtype, np.floating)


#: Modes that PNG holds; others become RGB first.
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def file_of(picture: Any) -> bytes:
    """A picture's file, see `Picture`. Raises DataError for all else."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        return _png(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
            raise DataError(f"not a picture but an array {picture.shape} of {picture.dtype}; (H, W, 3) of uint8 is one")
        return _png(Image.fromarray(picture))
    path = picture
    if isinstance(picture, Mapping):
        if isinstance(picture.get("bytes"), bytes):
            return bytes(picture["bytes"])
        path = picture.get("path")
    if not isinstance(path, (str, Path)):
        raise DataError(f"not a picture but {type(picture).__name__}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _png(picture: Image.Image) -> bytes:
    """The same pixels as a file, so that one decoder treats limits, orientation and transparency."""
    buffer = io.BytesIO()
    held = picture if picture.mode in _PNG_MODES else picture.convert("RGB")
    held.save(buffer, "PNG", compress_level=0, exif=picture.getexif())
    return buffer.getvalue()
