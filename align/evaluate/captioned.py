"""What a suite asks of captions besides retrieval: COCO 1K, Multi30K, labelled queries, and what others published.

Published files name pictures and captions by COCO's ids. They are read and looked up in the whole set before anything
is embedded, so that a wrong file is found at once. Pictures that cannot be shown to the model are left out, with what
the files say about them.

Labelled queries are a text, or a picture minus a text (the paper's section 7). A picture is right if one of its texts
names an expected word, as in the report of `align index`, which asks the same file over all pictures of an index. Here
the gallery is a set, so that two models are asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.config.suite import Task
from align.display.console import say
from align.errors import ConfigError, DataError
from align.evaluate.protocols.composed_queries import compose, precision_scores
from align.evaluate.protocols.crisscrossed import (
    Crisscrossed,
    Rated,
    crisscrossed_correlations,
    crisscrossed_ranks,
    crisscrossed_scores,
)
from align.evaluate.protocols.folds import recall_in_folds
from align.evaluate.protocols.multi30k import multi30k
from align.evaluate.protocols.recall import Gallery, Score
from align.evaluate.protocols.retrieval import Captioned, Indices, both_ways, retrieval_scores
from align.formats.caption_positives import placed_positives, read_positives
from align.formats.crisscrossed import SIS, SITS, STS, RatedPairs, read_rated_pairs
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.files import bytes_of, joined
from align.formats.labelled_queries import QueryFile, names, parse_queries
from align.interfaces.store import Files
from align.model.embedder import Embeddings

#: Of the text that is taken away from an image; the paper's.
TEXT_WEIGHT = 2.0

#: Of a file of labelled queries.
_MOST_BYTES = 16 << 20
#: For each query its right items, by position: of images and of texts.
BothWays = tuple[list[Indices], list[Indices]]


@dataclass(frozen=True)
class Published:
    """What files say about a set, by positions in the set.

    Attributes:
        positives: name -> right texts of each image, and right images of each text.
        rated: the ratings of Crisscrossed Captions; None: not asked.
        queries: labelled ones; None: not asked.
    """

    positives: Mapping[str, BothWays] = field(default_factory=dict)
    rated: Crisscrossed | None = None
    queries: QueryFile | None = None


def read_published(source: EvaluationSet, files: Files | None) -> Published:
    """Reads the files that the set's entry in the suite names, here or in S3.

    Args:
        source: the set.
        files: reads them; None: there are none, as no suite was read.

    Raises:
        DataError: a file is missing, the set has no ids, or a file names what is not in the set.
        FormatError: a file has another layout.
    """
    asked = source.asked
    if asked is None or not (asked.positives or asked.ratings or asked.queries):
        return Published()
    if files is None:
        raise ConfigError(f"evaluation set {source.name}: what others published about it is read with its suite only")
    queries = None
    if asked.queries is not None:
        data = bytes_of(files, asked.queries, "the labelled queries", _MOST_BYTES)
        queries = parse_queries(data, asked.queries)
    if not (asked.positives or asked.ratings):
        return Published(queries=queries)
    images = [image.number for image in source.images if image.number is not None]
    texts = [number for image in source.images for number in image.text_numbers]
    if len(images) != len(source.images) or len(texts) != len(source.texts):
        raise DataError(f"evaluation set {source.name}: {asked.path} has pictures or captions without COCO's ids")
    found = {}
    for name, uris in asked.positives.items():
        try:
            of_image = placed_positives(read_positives(uris.image_to_text, files), images, texts)
            of_text = placed_positives(read_positives(uris.text_to_image, files), texts, images)
        except DataError as error:
            raise type(error)(f"evaluation set {source.name}: positives {name}: {error}") from None
        found[name] = of_image, of_text
    rated = None if asked.ratings is None else _ratings(source.name, (asked.ratings, files), images, texts)
    return Published(found, rated, queries)


def _ratings(name: str, where: tuple[str, Files], images: Sequence[int], texts: Sequence[int]) -> Crisscrossed:
    folder, files = where
    found = []
    for kind, (first, second) in {STS: (texts, texts), SIS: (images, images), SITS: (texts, images)}.items():
        try:
            placed = _of_kind(kind, joined(folder, f"{kind}_test.csv"), files).placed(first, second)
        except DataError as error:
            raise type(error)(f"evaluation set {name}: cxc: {error}") from None
        found.append(Rated(placed.first, placed.second, placed.ratings))
    return Crisscrossed(*found)


def _of_kind(kind: str, file: str, files: Files) -> RatedPairs:
    pairs = read_rated_pairs(file, files)
    if pairs.kind != kind:
        raise DataError(f"{file}: its pairs are those of {pairs.kind}_test.csv")
    return pairs


@dataclass(frozen=True)
class Shown:
    """The part of a set that was shown to the model.

    Attributes:
        source: the whole set.
        images: positions of its images, in increasing order.
        items: their gallery.
        image_embeds, text_embeds: of the images and of `items.texts`.
        embed_texts: the model's, for texts that are not in the set.
    """

    source: EvaluationSet
    images: Sequence[int]
    items: Gallery
    image_embeds: Embeddings
    text_embeds: Embeddings
    embed_texts: Callable[[Iterable[str]], Embeddings]

    @property
    def texts(self) -> list[int]:
        """Positions of the texts in the whole set: those that belong to a picture that is shown."""
        owned = set(self.items.image_concepts)
        return [position for position, text in enumerate(self.source.texts) if text.owner in owned]


def captioned_scores(shown: Shown, published: Published, *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`coco_1k/image_to_text/recall@1`, `multi30k/mean_recall` and so on, those of published lists and of `cxc`.

    Raises:
        DataError: as the protocols.
    """
    how: Any = {"num_resamples": num_resamples, "seed": seed}
    found: dict[str, Score] = {}
    asked, items = shown.source.asked, shown.items
    protocols: dict[Task, Callable[..., dict[str, Score]]] = {"coco_1k": recall_in_folds, "multi30k": multi30k}
    for task, protocol in protocols.items():
        if asked is not None and task in asked.tasks:
            own = [int(images[0]) for images in items.images_of_text]
            of = Captioned(shown.image_embeds, shown.text_embeds, own, items.image_concepts)
            found |= {f"{task}/{name}": score for name, score in protocol(of, **how).items()}
    for name, (of_image, of_text) in published.positives.items():
        positives = restricted(of_image, shown.images, shown.texts), restricted(of_text, shown.texts, shown.images)
        ranks = both_ways(shown.image_embeds, shown.text_embeds, positives)
        for direction, clusters in (("image_to_text", items.image_concepts), ("text_to_image", items.text_concepts)):
            part = retrieval_scores(ranks[direction], clusters, **how)
            found |= {f"{name}/{direction}/{figure}": score for figure, score in part.items()}
    if published.rated is not None:
        found |= {f"cxc/{name}": score for name, score in _crisscrossed(shown, published.rated, how).items()}
    if published.queries is not None:
        part = query_scores(shown, published.queries, **how)
        found |= {f"labelled_queries/{name}": score for name, score in part.items()}
    return found


def _crisscrossed(shown: Shown, rated: Crisscrossed, how: Mapping[str, int]) -> dict[str, Score]:
    """Four retrievals, and three correlations; chance of a correlation is 0."""
    images, texts = shown.images, shown.texts
    rated = Crisscrossed(
        sts=_among(rated.sts, texts, texts), sis=_among(rated.sis, images, images),
        sits=_among(rated.sits, texts, images),
    )  # fmt: skip
    embeds = shown.image_embeds, shown.text_embeds
    own = [int(right[0]) for right in shown.items.images_of_text]
    found = crisscrossed_scores(crisscrossed_ranks(*embeds, rated), shown.items.image_concepts, own, **how)
    for name, one in crisscrossed_correlations(*embeds, rated, seed=how["seed"]).items():
        found[name] = Score(one.mean, one.low, one.high, 0.0)
    return found


def _among(pairs: Rated, first: Sequence[int], second: Sequence[int]) -> Rated:
    """The pairs whose items were shown, by their positions among these; both increase."""
    one, other = (np.asarray(kept, dtype=np.int64) for kept in (first, second))
    known = np.isin(pairs.first, one) & np.isin(pairs.second, other)
    at = np.searchsorted(one, pairs.first[known]), np.searchsorted(other, pairs.second[known])
    return Rated(*at, pairs.ratings[known])


def restricted(positives: Sequence[Indices], queries: Sequence[int], items: Sequence[int]) -> list[Indices]:
    """Right items of some queries among some items, by their positions among these; both increase."""
    kept = np.asarray(items, dtype=np.int64)
    return [np.searchsorted(kept, right[np.isin(right, kept)]) for right in (positives[query] for query in queries)]


def query_scores(shown: Shown, queries: QueryFile, *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`text/precision@10`, of the queries that have a right picture; of those that start from a picture of the set,
    `image/expected/precision@10` and `image/minus/precision@10` of the picture alone, and the same two under
    `image_minus_text`: there the share of what was taken away should be lower.

    Raises:
        DataError: no query of either kind can be asked of this set, or the embeddings are not finite.
    """
    how: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    name, gallery, pictures = shown.source.name, shown.image_embeds, [shown.source.images[at] for at in shown.images]

    def right(expected: Sequence[str]) -> NDArray[np.bool_]:
        """(num_images,) whether a text of the picture names one of the words."""
        return np.array([names(image.texts, expected) for image in pictures], dtype=bool)

    texts = [(query.query, labels) for query in queries.queries if (labels := right(query.expected)).any()]
    by_key = sorted(range(len(pictures)), key=lambda index: pictures[index].key)
    composed = []
    for query in queries.composed:
        named = (index for index in by_key if names(pictures[index].texts, [query.image_text]))
        if (first := next(named, None)) is not None:
            composed.append((first, query))
    num_asked, num_all = len(texts) + len(composed), len(queries.queries) + len(queries.composed)
    if not num_asked:
        raise DataError(f"evaluation set {name}: none of the {num_all:,} labelled queries has a right picture")
    if num_asked < num_all:
        say(f"evaluate: {name}: {num_all - num_asked:,} of {num_all:,} labelled queries have no picture in it")
    found: dict[str, Score] = {}
    if texts:
        embeds = shown.embed_texts([text for text, _ in texts])
        found |= precision_scores(embeds, gallery, {"text": np.stack([labels for _, labels in texts])}, **how)
    if composed:
        own = np.array([index for index, _ in composed])
        start, minus = gallery[own], shown.embed_texts([query.minus for _, query in composed])
        judged = {
            "expected": np.stack([right(query.expected) for _, query in composed]),
            "minus": np.stack([right([query.minus]) for _, query in composed]),
        }
        without = compose(start, minus, np.full(len(own), -TEXT_WEIGHT))
        for way, asked in (("image", start), ("image_minus_text", without)):
            of = {f"{way}/{label}": labels for label, labels in judged.items()}
            found |= precision_scores(asked, gallery, of, own, **how)
    return found
