"""`align evaluate` in several processes that torchrun, srun or mpirun has started, each with a card of its own.

Each rank embeds every n-th block of pictures and batch of texts of each set, in the batches of a single process, so
that the figures are the same to the digit. All of them gather the embeddings; then rank 0 alone measures and writes,
and the others end: what takes long without a card keeps nobody waiting. It joins two stages, so it is above them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from align.config import Params
from align.config.infrastructure import ClusterConfig
from align.errors import AlignError, ConfigError, DataError
from align.evaluate.embed import Half, ModelTowers, Towers, embedded
from align.evaluate.evaluate import Measuring, measured, measuring
from align.evaluate.measure import published_gallery
from align.evaluate.protocols.zero_shot import prompts
from align.formats.evaluation_set import EvaluationSet
from align.formats.features import ITEMS_AT_ONCE
from align.formats.model_folder import library_model
from align.model.embedder import Crop, Embeddings
from align.services.job import place_of_job
from align.training.ranks.process_group import Ranks, launch

_DIGEST_BYTES = 32


class _GatheredTowers:
    """A model whose embeddings are known. A picture stands for itself until its row is asked for."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
        self.pictures: dict[bytes, Half] = {}  # by sha256
        self.texts: dict[tuple[str, ...], Embeddings] = {}

    def crop(self, picture: bytes) -> Crop:
        """See `Towers`."""
        row: Crop | None = self.pictures.get(hashlib.sha256(picture).digest())
        if row is None:
            self._towers.crop(picture)  # says why
            raise DataError("cannot be read or decoded")
        return row

    def embed_crops(self, crops: Iterable[Crop]) -> Embeddings:
        """See `Towers`."""
        return np.array([*crops], dtype=np.float32)

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """See `Towers`."""
        asked = tuple(texts)
        known = self.texts.get(asked)
        return self._towers.embed_texts(asked) if known is None else known


def main(params: Params, args: argparse.Namespace) -> None:
    """`align evaluate` as a rank."""
    if args.compare is not None or args.log is not None:
        raise ConfigError("--compare and --log work in one process; start align without torchrun, srun or mpirun")
    found: list[Measuring] = []

    def work(ranks: Ranks) -> None:
        ready = _together(params, args, ranks)
        assert isinstance(ready.towers, ModelTowers)
        found.append(replace(ready, towers=_gathered(ready, ready.towers, ranks)))

    place = place_of_job()
    launch(work, 1, None, params.section(ClusterConfig), place=place)
    if place is None or place.rank == 0:
        measured(params, args, found[0])


def _together(params: Params, args: argparse.Namespace, ranks: Ranks) -> Measuring:
    """Reads model and sets on each rank. What keeps several from it is said by the first of them."""
    error: AlignError | None = None
    ready: Measuring | None = None
    try:
        ready = measuring(params, args, announces=ranks.leads)
    except AlignError as caught:
        error = caught
    failed = ranks.gather(torch.tensor([int(error is not None)], device=ranks.device)).tolist()
    if error is not None and 1 not in failed[: ranks.rank]:
        raise error
    if ready is None or 1 in failed:
        sys.exit(1)
    return ready


def _gathered(ready: Measuring, towers: ModelTowers, ranks: Ranks) -> _GatheredTowers:
    """All ranks call this."""
    found = _GatheredTowers(towers)
    for one in ready.sets:
        shown = _share_pictures(one, towers, ready.kept, ranks, found)
        if not shown or library_model(ready.folder) is not None:
            continue  # the texts of such a model are embedded by rank 0
        if one.kind == "retrieval":
            texts = tuple(dict.fromkeys(published_gallery(one, shown).texts))
        else:
            texts = tuple(prompts(one.classes, one.templates))
        if texts:
            part = torch.from_numpy(towers.embed_texts(texts, (ranks.rank, ranks.world_size)))
            found.texts[texts] = ranks.sum(part.to(ranks.device)).cpu().numpy()
    return found


def _share_pictures(
    one: EvaluationSet, towers: ModelTowers, kept: Path | None, ranks: Ranks, found: _GatheredTowers
) -> Sequence[int]:
    """The positions of pictures that can be shown to the model; adds their embeddings."""
    size, total = ITEMS_AT_ONCE, len(one.images)
    blocks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    mine = [position for block in blocks[ranks.rank :: ranks.world_size] for position in block]
    digests: dict[int, bytes] = {}
    rows = dict(embedded(one, towers, kept, {}, mine, seen=digests, shows=ranks.leads))
    embeds = np.array([*rows.values()], dtype=np.float16).reshape(len(rows), towers.width)
    names = np.frombuffer(b"".join(digests[position] for position in rows), np.uint8).reshape(-1, _DIGEST_BYTES)
    every = ranks.gather_rows(torch.from_numpy(embeds)).numpy()
    known = ranks.gather_rows(torch.from_numpy(names.copy())).numpy()
    found.pictures |= {name.tobytes(): row for name, row in zip(known, every, strict=True)}
    return sorted(ranks.gather_rows(torch.tensor([*rows], dtype=torch.int64)).tolist())
