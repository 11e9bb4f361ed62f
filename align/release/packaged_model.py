"""The packaged model, an MLflow pyfunc: image and/or text -> embeddings. MLflow copies this file into the folder.

    model = mlflow.pyfunc.load_model("models:/align@champion")
    model.predict(pandas.DataFrame({"text": ["a red fox", "two owls"]}))
    model.predict(pandas.DataFrame({"image": [Path("fox.jpg").read_bytes()]}))

Input: a frame with column `image` (an image file's bytes; base64 over HTTP), `text`, or both; a cell may be null.
Output: for each of these columns `image_embedding` or `text_embedding`, a list of floats (L2-normalised, so a dot
product is the cosine) or null.

It is a model from code: the folder holds this file, the modules of `align` that it needs (in code/), and the model
folder (in artifacts/). Nothing is pickled, and the model loads without `align` installed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature, set_model
from mlflow.pyfunc import save_model
from mlflow.pyfunc.model import PythonModel
from mlflow.types.schema import Array, ColSpec, DataType, Schema
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
    "torch>=2.9",
    "torchvision>=0.24",
    "tqdm>=4.67",
    "transformers>=5.0",
)

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.binary, "image", required=False),
            ColSpec(DataType.string, "text", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(Array(DataType.float), "image_embedding", required=False),
            ColSpec(Array(DataType.float), "text_embedding", required=False),
        ]
    ),
)


class PackagedModel(PythonModel):
    """Both towers behind one `predict`."""

    def load_context(self, context: Any) -> None:
        """Loads the model folder."""
        from align.model.embedder import Embedder

        self._embedder = Embedder.load(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Embeds each column. Rows keep their order.

        Raises:
            DataError: an image does not decode.
        """
        columns: dict[str, Callable[[list[Any]], NDArray[np.float32]]] = {
            "image": self._embedder.embed_images,
            "text": self._embedder.embed_texts,
        }
        output = pd.DataFrame(index=model_input.index)
        for name, embed in columns.items():
            if name in model_input:
                cells = list(model_input[name])
                filled = [index for index, cell in enumerate(cells) if not pd.isna(cell)]
                embeddings: list[list[float] | None] = [None] * len(cells)
                for index, row in zip(filled, embed([cells[index] for index in filled]), strict=True):
                    embeddings[index] = row.tolist()
                output[f"{name}_embedding"] = pd.Series(embeddings, index=model_input.index, dtype=object)
        return output


def save(directory: Path, *, model: Path, code: Path, metadata: dict[str, Any]) -> None:
    """Writes an MLflow model folder whose bytes depend only on the arguments and the versions of Python and MLflow.

    MLflow writes the time, a random id, absolute paths and the environment's build tools into it; these are replaced.

    Args:
        directory: empty or absent.
        model: a model folder.
        code: a folder named `align` with the modules that loading needs.
        metadata: written into MLmodel.
    """
    from align.files import MARK
    from align.formats.model_folder import leave_out_import_name

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    python = platform.python_version()
    conda_env = {
        "name": "align",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": list(REQUIREMENTS)}],
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
            input_example=pd.DataFrame({"text": ["a red fox"]}),
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
