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
from align.model.embedder import Crop, Embedder, Embeddings
from align.model.tokenizer import TextTokenizer
from align.services.files.files import StoreFiles
from align.training.ranks.process_group import Ranks
from align.training.state import MetricRow

#: Pictures that a rank embeds together: whole batches of an evaluation, so that sums round alike.
_PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class SetValidation:
    """See `align.training.validation.Validation`. Each rank reads the sets itself, from where section `paths` says."""

    names: tuple[str, ...]
    evaluation: Path
    store: StoreConfig
    config: EvaluateConfig

    @cached_property
    def sets(self) -> list[EvaluationSet]:
        """Raises ConfigError for a name without a set, or of a kind that is not measured here."""
        found = {one.name: one for one in named_sets(self.evaluation, StoreFiles(self.store)) if one.kind in _MEASURES}
        if missing := [name for name in self.names if name not in found]:
            raise ConfigError(
                f"validate_on: {missing[0]}: no set of captions or of classes has this name in {self.evaluation}; "
                f"there are {', '.join(found) or 'none'}"
            )
        return [replace(found[name], asked=None) for name in self.names]  # asked: what a suite wants beside this

    def __call__(self, model: DualEncoder, tokenizer: TextTokenizer, ranks: Ranks) -> MetricRow:
        """The figures with their 95 % intervals."""
        was_training, metrics = model.training, MetricRow()
        how: dict[str, Any] = {"num_resamples": self.config.num_resamples, "seed": self.config.seed}
        for one in self.sets:
            towers = _SharedTowers(Embedder(model, tokenizer, self.config.image_px))
            towers.share(one, ranks)
            positions = replace(one, pictures=lambda wanted: (str(position).encode() for position in wanted))
            for name, score in _MEASURES[one.kind](positions, towers, **how).scores.items():
                metric = f"val/{one.name}/{name}"
                if VALIDATED_ON.fullmatch(metric):
                    for end, value in (("", score.value), ("/low", score.low), ("/high", score.high)):
                        metrics[metric + end] = round(value, 6)
        model.train(was_training)
        return metrics


class _SharedTowers(LoadedTowers):
    """Towers that each rank asks for its share. They take positions for pictures, and rows for crops."""

    _ranks: Ranks
    _rows: Embeddings

    def share(self, one: EvaluationSet, ranks: Ranks) -> None:
        """Embeds all pictures of a set; the row of one that cannot be shown stays 0."""
        rows = np.zeros((len(one.images), self._embedder.width), dtype=np.float32)
        for start in range(ranks.rank * _PICTURES_AT_ONCE, len(rows), ranks.world_size * _PICTURES_AT_ONCE):
            pictures = one.read(range(start, min(start + _PICTURES_AT_ONCE, len(rows))), lambda *_: None)
            found = in_threads(self._shown, pictures, torch.get_num_threads())
            shown = {position: crop for position, crop in found if crop is not None}
            rows[list(shown)] = super().embed_crops(shown.values())
        self._ranks, self._rows = ranks, ranks.sum(torch.from_numpy(rows)).numpy()

    def _shown(self, item: tuple[int, bytes]) -> tuple[int, Crop | None]:
        try:
            return item[0], super().crop(item[1])
        except DataError:
            return item[0], None

    def crop(self, picture: bytes) -> Crop:
        row: Crop = self._rows[int(picture)]
        if not row.any():
            raise DataError("cannot be read or decoded")
        return row

    def embed_crops(self, crops: Iterable[Crop]) -> Embeddings:
        return np.array([*crops], dtype=np.float32)

    def embed_texts(self, texts: Iterable[str], part: tuple[int, int] = (0, 1)) -> Embeddings:
        """All ranks call this, for a share each: there is no other `part`."""
        with precision():
            rows = self._embedder.embed_texts(texts, (self._ranks.rank, self._ranks.world_size))
        found: Embeddings = self._ranks.sum(torch.from_numpy(rows)).numpy()
        return found


_MEASURES: dict[str, Any] = {"retrieval": measure_retrieval, "classification": measure_classification}


def set_validation(params: Params, names: tuple[str, ...]) -> SetValidation:
    """Reads the sets once, so that a wrong one is said before training. Raises AlignError."""
    paths, store, config = params.section(PathsConfig), params.section(StoreConfig), params.section(EvaluateConfig)
    found = SetValidation(tuple(names), paths.evaluation, store, config)
    assert replace(found).sets  # of another object, so that what ranks get stays small
    return found
