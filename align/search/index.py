"""index: every image of the shards -> its embedding, for search; and how well search finds what people ask.

All splits are indexed: search is for finding things, and the evaluation images are not among the shards. Where a file
of labelled queries is given, the report says how many find a right image, with pictures of what was found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from align.chance import chance
from align.config import Params
from align.config.index import IndexConfig
from align.config.paths import PathsConfig
from align.config.search import SearchConfig
from align.config.store import StoreConfig
from align.console import say, track
from align.errors import DataError
from align.figure import png
from align.files import replace_directory, write_bytes, write_text
from align.formats.image_index import Hit, ImageIndex, Item
from align.formats.shards import SPLITS, iter_samples, read_manifest
from align.model.embedder import Embedder, Encoder, model_digest
from align.report import Report, record_runtime, write_report
from align.search.page import Found, Row, search_figure, search_page
from align.search.queries import (
    ComposedQuery,
    LabelledQuery,
    MinusOutcome,
    compose,
    minus_share_ratio,
    names,
    read_queries,
    share_named,
)
from align.services.store import materialised
from align.services.vector_index import VectorIndex

#: A labelled query is answered when a right image is among this many.
ANSWER_CUT = 5
#: image - text is judged over this many.
SHARE_CUT = 10


class IndexReport(Report):
    """What is in the index, and the outcome of every labelled query.

    Attributes:
        model_digest: names the model that embedded the images.
        shards_digest: names the images.
        queries: query, expected, right (a right image in the top 5), chance (that five images drawn at random hold a
            right one), found (key, score, texts, right).
        composed: image_text, minus, image_key; share_before and share_after of what is taken away; expected, and its
            expected_before and expected_after. Where no indexed image has such a text, image_key is null and there is
            nothing else.
    """

    model_digest: str
    shards_digest: str
    queries: list[dict[str, Any]]
    composed: list[dict[str, Any]]


def index(
    config: IndexConfig,
    *,
    text_weight: float,
    encoder: Encoder,
    model_digest: str,
    shards: Path,
    out: Path,
    reports: Path,
) -> IndexReport:
    """Embeds and indexes all images, then asks the labelled queries.

    Args:
        config: section `index`.
        text_weight: `search.text_weight`.
        encoder: the model.
        model_digest: its name by its bytes.
        shards: data/shards.
        out: data/index; replaced whole.
        reports: the folder of this stage's report; replaced whole.

    Raises:
        DataError: no shards, no image in them, or no query file where one is named.
        CorruptError: a shard's bytes do not match the manifest.
    """
    asked = read_queries(config.queries) if config.queries else None
    manifest = read_manifest(shards)
    num_images = sum(split.num_images for split in manifest.splits.values())
    if not num_images:
        raise DataError(f"{shards}: no image in the shards, nothing to index")
    items: list[Item] = []
    images = track(_images(shards, items), what="index", total=num_images)
    vectors = encoder.embed_images(images)
    found = ImageIndex.build(
        items, VectorIndex.build(vectors), model_digest=model_digest, shards_digest=manifest.digest
    )
    found.save(out)

    rows = [_ask(query, found, encoder, shards) for query in asked.queries] if asked else []
    composed = [_subtract(query, found, encoder, shards, text_weight) for query in asked.composed] if asked else []
    report = IndexReport(
        metrics=_metrics(found, [row for row, _ in rows], [row for row, _ in composed]),
        model_digest=model_digest,
        shards_digest=manifest.digest,
        queries=[row for row, _ in rows],
        composed=[row for row, _ in composed],
    )
    with replace_directory(reports) as part:
        pictures = {"queries.png": [row for _, row in rows], "minus.png": [row for _, pair in composed for row in pair]}
        for name, shown in pictures.items():
            if shown:
                write_bytes(part / name, png(search_figure(shown)))
        if asked:
            sections = {
                "Labelled queries: the nearest images": pictures["queries.png"],
                "Image, and image - text. Red names what is taken away, green what should be left": pictures[
                    "minus.png"
                ],
            }
            write_text(part / "report.html", search_page("Search", _lead(report.metrics), sections))
        write_report(report, part)
    return report


def _images(shards: Path, items: list[Item]) -> Iterator[bytes]:
    """Yields every image of every split, and appends what it is to `items`."""
    for name in SPLITS:
        places = [
            (shard.path, jpg_offset, jpg_size)
            for shard in read_manifest(shards).splits[name].shards
            for jpg_offset, jpg_size, _, _ in shard.offsets
        ]
        for sample, (path, offset, size) in zip(iter_samples(shards, name), places, strict=True):
            items.append(Item(sample.key, sample.image_id, sample.texts, name, path, offset, size))
            yield sample.image


def _ask(query: LabelledQuery, found: ImageIndex, encoder: Encoder, shards: Path) -> tuple[dict[str, Any], Row]:
    hits = found.search(encoder.embed_texts([query.query])[0], ANSWER_CUT)
    answers = [
        {
            "key": hit.item.key,
            "score": round(hit.score, 4),
            "texts": list(hit.item.texts),
            "right": names(hit.item.texts, query.expected),
        }
        for hit in hits
    ]
    right = any(answer["right"] for answer in answers)
    num_right = sum(names(item.texts, query.expected) for item in found.items)
    outcome = {
        "query": query.query,
        "expected": query.expected,
        "right": right,
        "chance": round(chance([num_right], len(found.items), ANSWER_CUT), 6),
        "found": answers,
    }
    return outcome, Row(query.query, None, _shown(hits, shards, lambda texts: names(texts, query.expected)), right)


def _subtract(
    query: ComposedQuery, found: ImageIndex, encoder: Encoder, shards: Path, text_weight: float
) -> tuple[dict[str, Any], list[Row]]:
    """Asks with the image alone, and with image - text; the image itself is no answer to either."""
    image = next(
        (item for item in sorted(found.items, key=lambda item: item.key) if names(item.texts, [query.image_text])), None
    )
    if image is None:
        say(f"index: no image has a text with {query.image_text!r}; - {query.minus!r} is not asked")
        return {"image_text": query.image_text, "image_key": None, "minus": query.minus}, []
    vector = found.vector(image.key)
    minus = encoder.embed_texts([query.minus])[0]
    before = found.search(vector, SHARE_CUT, exclude=[image.key])
    after = found.search(compose(vector, minus=minus, text_weight=text_weight), SHARE_CUT, exclude=[image.key])
    texts_before, texts_after = ([hit.item.texts for hit in hits] for hits in (before, after))
    outcome = {
        "image_text": query.image_text,
        "image_key": image.key,
        "minus": query.minus,
        "share_before": share_named(texts_before, [query.minus]),
        "share_after": share_named(texts_after, [query.minus]),
        "expected": query.expected,
        "expected_before": share_named(texts_before, query.expected),
        "expected_after": share_named(texts_after, query.expected),
    }
    picture = image.image(shards)

    def judge(texts: Sequence[str]) -> bool | None:
        return False if names(texts, [query.minus]) else names(texts, query.expected) or None

    return outcome, [
        Row(f"image “{query.image_text}”", picture, _shown(before, shards, judge), None),
        Row(f"the same - “{query.minus}”", picture, _shown(after, shards, judge), None),
    ]


def _shown(hits: list[Hit], shards: Path, judge: Callable[[Sequence[str]], bool | None]) -> list[Found]:
    """What to draw. The figure's font has no Asian scripts: a text in ASCII is shown where there is one."""
    return [
        Found(
            image=hit.item.image(shards),
            text=next((text for text in hit.item.texts if text.isascii()), hit.item.texts[0]),
            score=hit.score,
            right=judge(hit.item.texts),
        )
        for hit in hits
    ]


def _metrics(
    found: ImageIndex, queries: list[dict[str, Any]], composed: list[dict[str, Any]]
) -> dict[str, float | int]:
    metrics: dict[str, float | int] = {"index/num_images": len(found.items)}
    if queries:
        metrics["index/queries/num_asked"] = len(queries)
        metrics["index/queries/num_right_in_top_5"] = sum(outcome["right"] for outcome in queries)
        metrics["index/queries/num_right_in_top_5/chance"] = round(sum(outcome["chance"] for outcome in queries), 3)
    if done := [outcome for outcome in composed if outcome["image_key"] is not None]:
        metrics["index/minus/num_asked"] = len(done)
        metrics["index/minus/num_without_image"] = len(composed) - len(done)
        shares = [MinusOutcome(outcome["share_before"], outcome["share_after"]) for outcome in done]
        metrics["index/minus/share_before"] = round(sum(share.before for share in shares) / len(shares), 6)
        metrics["index/minus/share_after"] = round(sum(share.after for share in shares) / len(shares), 6)
        metrics["index/minus/share_ratio"] = round(minus_share_ratio(shares), 6)
        for when in ("before", "after"):
            left = [float(outcome[f"expected_{when}"]) for outcome in done]
            metrics[f"index/minus/expected_{when}"] = round(sum(left) / len(left), 6)
    return metrics


def _lead(metrics: dict[str, float | int]) -> str:
    parts = [f"{metrics['index/num_images']:,} images"]
    if "index/queries/num_asked" in metrics:
        right, asked = metrics["index/queries/num_right_in_top_5"], metrics["index/queries/num_asked"]
        guess = metrics["index/queries/num_right_in_top_5/chance"]
        parts.append(
            f"{right} of {asked} labelled queries have a right image in the top {ANSWER_CUT} ({guess:.1f} by chance)"
        )
    if "index/minus/share_ratio" in metrics:
        before, after = metrics["index/minus/share_before"], metrics["index/minus/share_after"]
        parts.append(
            f"image - text takes what it names from {before:.0%} of the top {SHARE_CUT} to {after:.0%} on average"
        )
    return "; ".join(parts) + "."


def main(params: Params, args: argparse.Namespace) -> None:
    """`align index`."""
    config, search, paths = params.section(IndexConfig), params.section(SearchConfig), params.section(PathsConfig)
    with record_runtime("index", paths.runtime) as record:
        report = index(
            config,
            text_weight=search.text_weight,
            encoder=Embedder.load(paths.finetuned, paths.tokenizer),
            model_digest=model_digest(paths.finetuned, paths.tokenizer),
            shards=materialised(paths.shards, params.section(StoreConfig)),
            out=paths.index,
            reports=paths.reports / "index",
        )
        record["num_images"] = report.metrics["index/num_images"]
    say(f"index: {_lead(report.metrics)}")
