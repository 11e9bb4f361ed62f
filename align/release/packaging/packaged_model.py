"""The packaged model, an MLflow pyfunc: image and/or text -> embeddings. MLflow copies this file into the folder.

    model = mlflow.pyfunc.load_model("models:/align@champion")
    model.predict(pandas.DataFrame({"text": ["a red fox", "two owls"]}))
    model.predict(pandas.DataFrame({"image": [Path("fox.jpg").read_bytes()]}))

Input: a frame with column `image` (an image file's bytes, or these as base64, as they come over HTTP), `text`, or both;
a cell may be null. Output: for each of these columns `image_embedding` or `text_embedding`, a list of floats
(L2-normalised, so a dot product is the cosine) or null. Any other cell is refused with one line that names the row;
`mlflow models serve` answers it with status 400.

The signature leaves the types of both columns open: MLflow would refuse a null picture, and answer a wrong cell with
status 500 and a copy of the request.

It is a model from code: the folder holds this file, the modules of `align` that it needs (in code/), and the model
folder (in artifacts/). Nothing is pickled, and the model loads without `align` installed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import save_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema
from numpy.typing import NDArray

#: Ranges as in pyproject.toml: an exact pin would allow either the CPU or the CUDA builds, not both.
REQUIREMENTS = (
    "mlflow>=3.5",
    "numpy>=2.0",
    "pandas>=2.2",
    "pillow>=11.3",
    "pydantic>=2.10",
    "ruamel.yaml>=0.18",
    "safetensors>=0.5",
    "simplejpeg>=1.8",
    "tokenizers>=0.21",
    "torch>=2.12.1,<2.14",
    "tqdm>=4.67",
)
#: And those that build the towers of some models.
TOWERS = {"timm": "timm>=1.0.20", "transformers": "transformers>=5.0"}

_ANY = AnyType()  # type: ignore[no-untyped-call]  # MLflow's
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(_ANY, "image", required=False),
            ColSpec(_ANY, "text", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(Array(DataType.float), "image_embedding", required=False),
            ColSpec(Array(DataType.float), "text_embedding", required=False),
        ]
    ),
)


class BadInput(MlflowException):
    """A frame that cannot be embedded. Its answer over HTTP is this line alone: MLflow would add the request's data."""

    def __init__(self, reason: str) -> None:
        """Says what is wrong, and in which row."""
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)
        self._reason = reason

    def serialize_as_json(self) -> str:
        """The body of the answer."""
        return json.dumps({"error_code": self.error_code, "message": self._reason})


class PackagedModel(PythonModel):
    """Both towers behind one `predict`."""

    def load_context(self, context: Any) -> None:
        """Loads the model folder."""
        from align.model.embedder import Embedder

        self._embedder = Embedder.load(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Embeds each column. Rows keep their order.

        Raises:
            BadInput: there is neither column, a cell is not what its column holds, or an image does not decode.
        """
        columns = [name for name in _READ if name in model_input]
        if not columns:
            raise BadInput("give a column `image`, `text`, or both")
        output = pd.DataFrame(index=model_input.index)
        for name in columns:
            cells = [_READ[name](row, cell) for row, cell in enumerate(model_input[name])]
            filled = [row for row, cell in enumerate(cells) if cell is not None]
            embeddings: list[list[float] | None] = [None] * len(cells)
            for row, embedding in zip(filled, self._embed(name, cells, filled), strict=True):
                embeddings[row] = embedding.tolist()
            output[f"{name}_embedding"] = pd.Series(embeddings, index=model_input.index, dtype=object)
        return output

    def _embed(self, name: str, cells: Sequence[Any], filled: Sequence[int]) -> NDArray[np.float32]:
        from align.errors import AlignError

        if name == "text":
            return self._embedder.embed_texts([cells[row] for row in filled])
        reached = 0

        def images() -> Iterator[bytes]:  # the towers decode one after the other
            nonlocal reached
            for reached in filled:
                yield cells[reached]

        try:
            return self._embedder.embed_images(images())
        except AlignError as error:
            raise BadInput(f"row {reached}: image: {error}") from None


def _image(row: int, cell: Any) -> bytes | None:
    if _is_null(cell):
        return None
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    try:
        return base64.b64decode("".join(cell.split()), validate=True)
    except (AttributeError, ValueError, binascii.Error):
        raise BadInput(f"row {row}: image: neither a file's bytes nor base64 of them") from None


def _text(row: int, cell: Any) -> str | None:
    if _is_null(cell):
        return None
    if isinstance(cell, str):
        return cell
    raise BadInput(f"row {row}: text: not a text but {type(cell).__name__}")


def _is_null(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell))


#: Column -> what reads one of its cells.
_READ: dict[str, Callable[[int, Any], Any]] = {"image": _image, "text": _text}


def save(directory: Path, *, model: Path, code: Path, metadata: dict[str, Any]) -> None:
    """Writes an MLflow model folder whose bytes depend only on the arguments and the versions of Python and MLflow.

    MLflow writes the time, a random id, absolute paths and the environment's build tools into it; these are replaced.

    Args:
        directory: empty or absent.
        model: a model folder.
        code: a folder named `align` with the modules that loading needs.
        metadata: written into MLmodel.
    """
    from align.durable.files import MARK
    from align.formats.model_folder import leave_out_import_name, read_config

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    python = platform.python_version()
    towers = [TOWERS[name] for name in read_config(model).model.libraries]
    conda_env = {
        "name": "align",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": [*REQUIREMENTS, *towers]}],
    }
    with warnings.catch_warnings():  # MLflow uses deprecated parts of pandas
        warnings.simplefilter("ignore")
        save_model(
            str(directory),
            python_model=__file__,
            artifacts={"model": str(model)},
            code_paths=[str(code)],
            signature=SIGNATURE,
            conda_env=conda_env,
            metadata=metadata,
            input_example=pd.DataFrame({"image": [None], "text": ["a red fox"]}),
        )
    for mark in directory.glob(f"artifacts/*/{MARK}"):  # of the folder that was copied; this one gets its own
        mark.unlink()
    leave_out_import_name(directory / "artifacts" / model.name)
    (directory / "python_env.yaml").write_text(f"python: {python}\ndependencies:\n- -r requirements.txt\n")
    saved = Model.load(str(directory))
    flavour = saved.flavors["python_function"]
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]
    flavour["model_code_path"] = Path(__file__).name
    saved.utc_time_created = "1970-01-01 00:00:00"
    saved.model_uuid = _digest(directory)[:32]
    saved.save(str(directory / "MLmodel"))


def _digest(directory: Path) -> str:
    """sha256 over all files but MLmodel."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "MLmodel":
            digest.update(f"{path.relative_to(directory).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


set_model(PackagedModel())
