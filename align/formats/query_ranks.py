"""`ranks.parquet`: the rank that a model gave the right answer of each query, one row per query.

With it, two models that were asked the same queries can be compared query by query, long after they were measured.
Every metric of the evaluation follows from the ranks: recall@k is the share of ranks up to k, where nothing ties.

    set, protocol       such as `concepts`, `image_to_text`; see PROTOCOLS
    query               the image's key, or `text-` and 16 hex digits of a sha256 of text and owner: a text may be taken
                        down
    cluster             the concept: queries of one concept are no independent observations
    label               the class of an image that is classified; null elsewhere
    language            of a query of text_to_image: its ISO 639-1 code; of one of image_to_text: that of its right
                        texts, if those whose language can be told agree; null elsewhere, and where none can be told
    rank                of the best right item, from 1, behind all wrong items of equal similarity; num_items + 1 where
                        there is none. In protocols that answer without an order, such as `knn`, 2 stands for any later
                        rank
    wrong_ties          wrong items of the same similarity: recall counts a query by its share of their orders
    right_ties          right items of this similarity, the best one included
    num_correct, num_items

The file's metadata has schema_version and the digest of each set (`align.formats.measured_sets`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.errors import DataError, FormatError
from align.statistics.chance import chance, expected_hits
from align.statistics.intervals import Scored

RANKS = "ranks.parquet"
#: The K of the paper's tables.
CUTS = (1, 5, 10)
#: The ways of asking. The first two measure sets of kind retrieval, the others those of classification.
IMAGE_TO_TEXT, TEXT_TO_IMAGE, ZERO_SHOT, KNN = PROTOCOLS = ("image_to_text", "text_to_image", "zero_shot", "knn")
#: In a protocol of classifiers that are fitted several times, before the number of the fit: `fine_tuning#0`.
RUN = "#"

_VERSION, _SETS = b"align.schema_version", b"align.sets"
_WRITTEN = "3"
_TEXTS = ("set", "protocol", "query", "cluster", "label", "language")
_NUMBERS = ("rank", "wrong_ties", "right_ties", "num_correct", "num_items")
_SCHEMA = pa.schema([
    *(pa.field(name, pa.string(), nullable=name in ("label", "language")) for name in _TEXTS),
    *(pa.field(name, pa.int32(), nullable=False) for name in _NUMBERS),
])  # fmt: skip


@dataclass(frozen=True)
class Ranked:
    """The queries of one set and protocol, in the set's order.

    Attributes:
        queries, clusters: (num_queries,) see the module.
        labels: (num_queries,) the class; None if images are not classified.
        ranks: (num_queries,) from 1.
        num_correct: (num_queries,) right items of each query.
        num_items: in the gallery.
        languages: (num_queries,) see the module; empty: none is known.
        ties: (num_queries, 2) wrong and right ones, see `expected_hits`; None: nothing ties.
    """

    queries: tuple[str, ...]
    clusters: tuple[str, ...]
    labels: tuple[str, ...] | None
    ranks: NDArray[np.int64]
    num_correct: NDArray[np.int64]
    num_items: int
    languages: tuple[str | None, ...] = ()
    ties: NDArray[np.int64] | None = None

    def recall(self, k: int) -> NDArray[np.float64]:
        """(num_queries,) 1.0 if a right item is among the first k; in ties the share of the orders where one is."""
        return expected_hits(self.ranks, self.ties, k)

    def mean_recall(self) -> NDArray[np.float64]:
        """(num_queries,) the mean of recall@1, @5 and @10."""
        mean: NDArray[np.float64] = np.mean([self.recall(k) for k in CUTS], axis=0)
        return mean


@dataclass(frozen=True)
class QueryRanks:
    """The file.

    Attributes:
        sets: set -> its digest.
        ranked: (set, protocol) -> its queries.
    """

    sets: Mapping[str, str]
    ranked: Mapping[tuple[str, str], Ranked]

    def scored(self, metric: str) -> list[Scored]:
        """A metric by its name, such as `concepts/mean_recall`: the groups whose means' mean it is. Raises DataError if
        these sets have no such metric.
        """
        return [Scored(values, part.clusters) for part, values in self._parts(metric)]

    def chance(self, metric: str) -> float:
        """The metric of a random order. Raises DataError as `scored`."""
        parts = [part for part, _ in self._parts(metric)]
        cuts = CUTS if metric.endswith("mean_recall") else (cut_of(metric),)
        return float(np.mean([chance(part.num_correct, part.num_items, k) for part in parts for k in cuts]))

    def _parts(self, metric: str) -> list[tuple[Ranked, NDArray[np.float64]]]:
        fits = []
        for (name, protocol), part in self.ranked.items():
            if metric == f"{name}/mean_recall" and protocol == IMAGE_TO_TEXT:
                both = (part, self.ranked[name, TEXT_TO_IMAGE])
                return [(one, one.mean_recall()) for one in both]
            if metric == f"{name}/{protocol}/mean_recall" and protocol in (IMAGE_TO_TEXT, TEXT_TO_IMAGE):
                return [(part, part.mean_recall())]
            if metric in (f"{name}/{protocol}/{last}" for last in _LAST.get(protocol, ("accuracy",))):
                return [(part, part.recall(cut_of(metric)))]
            if RUN in protocol and metric == f"{name}/{protocol.partition(RUN)[0]}/accuracy":
                fits.append((part, part.recall(1)))
        if fits:
            return fits
        known = ", ".join(sorted(self.sets)) or "none"
        raise DataError(f"metric '{metric}' was not measured; the measured sets are {known}: correct promote.metrics")


_RECALLS = tuple(f"recall@{k}" for k in CUTS)
_LAST = {IMAGE_TO_TEXT: _RECALLS, TEXT_TO_IMAGE: _RECALLS, ZERO_SHOT: ("accuracy", "top5")}


def cut_of(metric: str) -> int:
    """The k of a metric `.../recall@k`; accuracy is recall@1, top5 recall@5."""
    name = metric.rpartition("/")[2]
    return {"accuracy": 1, "top5": 5}.get(name) or int(metric.rpartition("@")[2])


def write_ranks(ranks: QueryRanks, path: Path) -> None:
    """Writes the file; equal ranks are equal bytes."""
    tables = [_SCHEMA.empty_table()]
    for (name, protocol), part in ranks.ranked.items():
        number = len(part.queries)
        none = [None] * number
        ties = np.tile([0, 1], (number, 1)) if part.ties is None else part.ties
        columns: list[Any] = [[name] * number, [protocol] * number, part.queries, part.clusters]
        columns += [part.labels or none, part.languages or none]
        columns += [part.ranks, *ties.T, part.num_correct, [part.num_items] * number]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
        tables.append(pa.table(arrays, schema=_SCHEMA))
    metadata = {_VERSION: _WRITTEN.encode(), _SETS: json.dumps(dict(ranks.sets), sort_keys=True).encode()}
    whole = pa.concat_tables(tables).combine_chunks().replace_schema_metadata(metadata)
    pq.write_table(whole, path, compression="zstd")


def read_ranks(path: Path) -> QueryRanks:
    """Reads the file.

    Raises:
        DataError: there is no such file, or it is damaged.
        FormatError: another schema_version or layout.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align evaluate` first") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {' '.join(str(error).split())[:200]}") from None
    metadata = table.schema.metadata or {}
    version = metadata.get(_VERSION, b"none").decode(errors="replace")
    if version != _WRITTEN or not table.schema.equals(_SCHEMA):
        raise FormatError(f"{path}: schema_version {version}, or other columns than it has; this code reads {_WRITTEN}")
    try:
        sets = {str(name): str(digest) for name, digest in json.loads(metadata[_SETS]).items()}
    except (KeyError, ValueError, AttributeError):
        raise FormatError(f"{path}: does not name the sets that were measured") from None
    return QueryRanks(sets, _ranked(table))


def _ranked(table: pa.Table) -> dict[tuple[str, str], Ranked]:
    columns = {name: table[name].to_pylist() for name in _TEXTS}
    numbers = {name: table[name].to_numpy().astype(np.int64) for name in _NUMBERS}
    rows: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(columns["set"], columns["protocol"], strict=True)):
        rows.setdefault(key, []).append(row)
    found = {}
    for key, of in rows.items():
        labels, told = (tuple(columns[name][row] for row in of) for name in ("label", "language"))
        found[key] = Ranked(
            queries=tuple(columns["query"][row] for row in of),
            clusters=tuple(columns["cluster"][row] for row in of),
            labels=None if None in labels else labels,
            ranks=numbers["rank"][of],
            num_correct=numbers["num_correct"][of],
            num_items=int(numbers["num_items"][of[0]]),
            languages=told if any(told) else (),
            ties=np.stack([numbers[name][of] for name in ("wrong_ties", "right_ties")], axis=1),
        )
    return found
