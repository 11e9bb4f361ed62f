"""Evaluation sets that a run is measured on while it trains (`pretrain.validate_on`), as by `align evaluate`.

It joins two stages, so it is above them: `align.cli` hands it to the one that trains. It changes no weight, so neither
a stage's digest nor a run's key has its code or the sets: an edit of these trains nothing again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.recipe import VALIDATED_ON
from align.durable.processes import in_threads
from align.errors import ConfigError, DataError
from align.evaluate.embed import LoadedTowers, precision
from align.evaluate.measure import measure_classification, measure_retrieval
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.named import named_sets
from align.model.dual_encoder import DualEncoder
from align.model.embedder import Embeddings
from align.model.tokenizer import TextTokenizer
from align.services.files.files import StoreFiles
from align.training.ranks.process_group import Ranks
from align.training.state import MetricRow

#: Pictures that a rank embeds together: whole batches of an evaluation, so that sums round alike.
_BLOCK = 256


@dataclass(frozen=True)
class SetValidation:
    """See `align.training.loop.Validation`. Each rank reads the sets itself.

    Attributes:
        names: of the sets.
        evaluation: where they are.
        store: of files that a suite names.
        config: section `evaluate`: the intervals, and another picture size.
    """

    names: tuple[str, ...]
    evaluation: Path
    store: StoreConfig
    config: EvaluateConfig

    @cached_property
    def sets(self) -> list[EvaluationSet]:
        """Raises ConfigError for a name without a set, or of a kind that is not measured here."""
        found = {one.name: one for one in named_sets(self.evaluation, StoreFiles(self.store))}
        for name in self.names:
            if name not in found or found[name].kind == "many_labels":
                raise ConfigError(
                    f"validate_on: {name}: no set of captions or of classes has this name in {self.evaluation}; there "
                    f"are {', '.join(found) or 'none'}"
                )
        return [replace(found[name], asked=None) for name in self.names]  # asked: what a suite wants beside this

    def __call__(self, model: DualEncoder, tokenizer: TextTokenizer, ranks: Ranks, spread: bool) -> MetricRow:
        """The figures with their 95 % intervals."""
        was_training, metrics = model.training, MetricRow()
        how: dict[str, Any] = {"num_resamples": self.config.num_resamples, "seed": self.config.seed}
        share = ranks if spread else Ranks(0, 1, ranks.device)
        for one in self.sets:
            towers = _SharedTowers(model, tokenizer, self.config.image_px, share)
            measure = measure_retrieval if one.kind == "retrieval" else measure_classification
            for name, score in measure(towers.embedded(one), towers, **how).scores.items():
                metric = f"val/{one.name}/{name}"
                if VALIDATED_ON.fullmatch(metric):
                    for end, value in (("", score.value), ("/low", score.low), ("/high", score.high)):
                        metrics[metric + end] = round(value, 6)
        model.train(was_training)
        return metrics


class _SharedTowers(LoadedTowers):
    """Towers that each rank asks for its share. Pictures come embedded: a set's picture is its position, as bytes."""

    def __init__(self, model: DualEncoder, tokenizer: TextTokenizer, image_px: int | None, ranks: Ranks) -> None:
        super().__init__(model, tokenizer, image_px)
        self._ranks = ranks
        self._rows: Embeddings = np.empty((0, self._embedder.width), dtype=np.float32)

    def embedded(self, one: EvaluationSet) -> EvaluationSet:
        """Embeds all pictures; returns the set of their positions."""
        rows = np.zeros((len(one.images), self._embedder.width), dtype=np.float32)
        for start in range(self._ranks.rank * _BLOCK, len(rows), self._ranks.world_size * _BLOCK):
            block = range(start, min(start + _BLOCK, len(rows)))
            found = in_threads(self._shown, one.read(block, lambda *_: None), torch.get_num_threads())
            shown = {position: crop for position, crop in found if crop is not None}
            rows[list(shown)] = super().embed_crops(shown.values())
        self._rows = self._summed(rows)
        return replace(one, pictures=lambda wanted: (str(position).encode() for position in wanted))

    def _shown(self, item: tuple[int, bytes]) -> tuple[int, NDArray[np.uint8] | None]:
        try:
            return item[0], super().crop(item[1])
        except DataError:
            return item[0], None

    def _summed(self, rows: Embeddings) -> Embeddings:
        """Each rank has some rows, and zeros elsewhere."""
        found: Embeddings = self._ranks.sum(torch.from_numpy(rows)).numpy()
        return found

    def crop(self, picture: bytes) -> NDArray[np.uint8]:
        """The embedding takes the crop's place. Raises DataError if there is none."""
        row: NDArray[Any] = self._rows[int(picture)]
        if not row.any():
            raise DataError("cannot be read or decoded")
        return row

    def embed_crops(self, crops: Iterable[NDArray[np.uint8]]) -> Embeddings:
        """They are embedded."""
        return np.array([*crops], dtype=np.float32)

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """All ranks call this."""
        with precision():
            return self._summed(self._embedder.embed_texts(texts, (self._ranks.rank, self._ranks.world_size)))


def set_validation(params: Params, names: tuple[str, ...]) -> SetValidation:
    """Reads the sets once, so that a wrong one is said before training. Raises AlignError."""
    paths, store, config = params.section(PathsConfig), params.section(StoreConfig), params.section(EvaluateConfig)
    found = SetValidation(tuple(names), paths.evaluation, store, config)
    assert replace(found).sets  # of another object, so that what ranks get stays small
    return found
