"""mteb over our models: its tasks of images, of texts, and of both.

    import mteb
    from align.python.mteb import load

    mteb.evaluate(load("models/finetuned"), mteb.get_tasks(["Food101ZeroShot"]))

Pictures reach our decoder as the files' bytes wherever a task's data set still holds them (`align.python.models`).
An input of a picture and a text is embedded as the normalised sum of both, as a query of image + text (paper section
7). mteb keeps results by name and revision; the revision is the model's digest, so that another model in the same
folder is measured again.

Written for mteb 2.26: an encoder is whatever has the methods of its `EncoderProtocol`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.errors import ConfigError, DataError
from align.model.embedder import Embeddings
from align.python import models
from align.python.models import Model, crops

INSTALL = "pip install mteb==2.26.24"


class Encoder:
    """A model, as mteb calls it.

    Attributes:
        mteb_model_meta: mteb's ModelMeta: name, revision, size.
    """

    def __init__(self, model: Model, meta: Any) -> None:
        self._embedder = model.embedder
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Embeddings:
        """Embeds a task's inputs.

        Args:
            inputs: a DataLoader of batches with `image` (Pillow images) or `text`, or both.
            task_metadata: names the task in messages.
            hf_split: not read, as `hf_subset` and `prompt_type`: this model knows no prompts.
            hf_subset: see `hf_split`.
            prompt_type: see `hf_split`.
            kwargs: mteb's encode_kwargs. `batch_size` changes speed only, and not here.

        Returns:
            (num_inputs, width) float32, L2-normalised rows, in the order of the inputs.

        Raises:
            ConfigError: a `precision` other than float32.
            DataError: an input has neither text nor picture, or a picture does not decode.
        """
        if (precision := kwargs.get("precision") or "float32") != "float32":
            raise ConfigError(f"precision={precision}: this model's embeddings are float32; leave it out")
        columns, task = list(inputs.dataset.features), getattr(task_metadata, "name", "task")
        images = texts = None
        if "image" in columns:
            images = self._embedder.embed_pixels(crops(self._embedder, _column(inputs, "image"), f"{task}: image"))
        if "text" in columns:
            texts = self._embedder.embed_texts(list(_column(inputs, "text")))
        if images is None and texts is None:
            raise DataError(f"{task}: inputs of {', '.join(columns) or 'no columns'}: neither image nor text")
        if images is None:
            assert texts is not None
            return texts
        return images if texts is None else _unit(images + texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of all pairs: (num_1, width), (num_2, width) -> (num_1, num_2). One row may be (width,)."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of rows of the same number: (num, width), (num, width) -> (num,)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(dim=1)


def _column(inputs: Any, name: str) -> Iterable[Any]:
    """A column of a task's inputs, streamed: no other is read."""
    dataset = inputs.dataset
    if not hasattr(dataset, "select_columns"):  # no data set of the library `datasets`, such as a list of pictures
        return (cell for batch in inputs for cell in batch[name])
    alone, feature = dataset.select_columns([name]), dataset.features[name]
    if getattr(feature, "decode", False):  # its type Image: the file's bytes instead of a Pillow image
        alone = alone.cast_column(name, type(feature)(decode=False))
    return (row[name] for row in alone)


def load(source: str | Path) -> Encoder:
    """The model for `mteb.evaluate`.

    Args:
        source: as for `align.load`.

    Raises:
        ConfigError: mteb is not installed here. Else as `align.load`.
    """
    try:
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction
    except ImportError as error:
        raise ConfigError(f"mteb cannot be imported ({error}); install it here: {INSTALL}") from None
    model = models.load(source)
    meta = ModelMeta(
        loader=None,
        name=f"align/{model.name}",
        revision=model.digest,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=model.width,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,  # unknown to mteb: none of its sets, unless somebody trained on one
        modalities=["image", "text"],
    )
    return Encoder(model, meta)


def _rows(embeddings: Any) -> Tensor:
    rows = torch.as_tensor(embeddings, dtype=torch.float32)
    return torch.nn.functional.normalize(rows.reshape(-1, rows.shape[-1]), dim=1)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
