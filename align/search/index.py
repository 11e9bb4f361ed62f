"""index: embeds every image of the shards for search, and measures how often search finds what people ask for.

All splits are indexed, since search is for finding things; the images of the evaluation sets are not in the shards. The
index also has the addresses of each pair and the rules that kept it, so that it says by itself where a picture comes
from. Each tar is a task for `engine.runner` (`align.search.embed_shards`), and a killed run resumes at the tar.

If there is a file of labelled queries, the finished index is asked each of them. The texts of the images found say
which answers are right; the report counts and shows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.search import IndexConfig, SearchConfig
from align.display.console import say, track
from align.display.figure import png
from align.display.report import record_runtime, write_report
from align.durable.files import replace_directory, require_replaceable, write_bytes, write_text
from align.durable.steps import Work
from align.durable.work import SCRATCH, key_of, work_directory
from align.errors import DataError, FormatError
from align.formats.image_index import Hit, ImageIndex, IndexedImage, IndexFacts, write_index
from align.formats.model_folder import model_digest
from align.formats.raw import raw_shards
from align.formats.shards import local_tar, read_manifest
from align.model.embedder import Embedder, SearchEncoder
from align.project import provenance
from align.search.addresses import with_addresses
from align.search.embed_shards import RESULTS, EmbedWork, embed_shards, embedded_tars
from align.search.queries import (
    ComposedQuery,
    LabelledQuery,
    QueryFile,
    compose,
    names,
    read_queries,
    share_named,
)
from align.search.report import (
    ANSWER_CUT,
    SHARE_CUT,
    AnsweredQuery,
    ImageAnswer,
    IndexReport,
    index_metrics,
    search_figure,
    search_page,
)
from align.search.surely import Asked, ask_held_out, held_levels, promised
from align.search.surely_report import surely_figure, surely_metrics
from align.services.executors.executors import open_executor
from align.services.s3.store import fetcher
from align.services.store_work import open_work
from align.services.vector_index import VectorIndex
from align.statistics.chance import chance

#: What a labelled query returned: an entry of the report, and the queries to show (none if nothing was asked).
Outcome = tuple[dict[str, Any], list[AnsweredQuery]]


@dataclass(frozen=True)
class LabelledSearch:
    """Asks an index the labelled queries.

    Attributes:
        images: the index.
        encoder: the model that the index was made with.
        picture: reads an image's bytes.
        text_weight: weight of the text that is taken away from an image.
    """

    images: ImageIndex
    encoder: SearchEncoder
    picture: Callable[[IndexedImage], bytes]
    text_weight: float

    def ask(self, query: LabelledQuery) -> Outcome:
        """Asks with a text. The answer is right if a text of one of the first images names an expected word."""
        hits = self.images.search(self.encoder.embed_texts([query.query])[0], ANSWER_CUT)
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
        num_right = sum(names(texts, query.expected) for texts in self.images.items.texts())
        promise, splits = self.images.header.promise, self.encoder.splits([query.query])
        entry = {
            "query": query.query,
            "expected": query.expected,
            "right": right,
            "chance": round(chance([num_right], len(self.images.items), ANSWER_CUT), 6),
            "surely": held_levels(promise, hits[0].score, float(splits[0])) if promise else [],
            "found": answers,
        }
        shown = self._answers(hits, lambda texts: names(texts, query.expected))
        return entry, [AnsweredQuery(query.query, None, shown, right)]

    def subtract(self, query: ComposedQuery) -> Outcome:
        """Asks with an image alone and with image - text. The image itself is excluded from both answers."""
        items = self.images.items
        named = (items[row] for row, texts in enumerate(items.texts()) if names(texts, [query.image_text]))
        image = min(named, key=lambda item: item.key, default=None)
        if image is None:
            say(f"index: no image has a text with {query.image_text!r}, so - {query.minus!r} is not asked")
            return {"image_text": query.image_text, "image_key": None, "minus": query.minus}, []
        vector = self.images.vector(image.key)
        minus = compose(vector, minus=self.encoder.embed_texts([query.minus])[0], text_weight=self.text_weight)
        before = self.images.search(vector, SHARE_CUT, exclude=[image.key])
        after = self.images.search(minus, SHARE_CUT, exclude=[image.key])
        texts_before, texts_after = ([hit.item.texts for hit in hits] for hits in (before, after))
        entry = {
            "image_text": query.image_text,
            "image_key": image.key,
            "minus": query.minus,
            "share_before": share_named(texts_before, [query.minus]),
            "share_after": share_named(texts_after, [query.minus]),
            "expected": query.expected,
            "expected_before": share_named(texts_before, query.expected),
            "expected_after": share_named(texts_after, query.expected),
        }
        picture = self.picture(image)

        def judge(texts: Sequence[str]) -> bool | None:
            return False if names(texts, [query.minus]) else names(texts, query.expected) or None

        shown = [
            AnsweredQuery(f"image “{query.image_text}”", picture, self._answers(before, judge), None),
            AnsweredQuery(f"the same - “{query.minus}”", picture, self._answers(after, judge), None),
        ]
        return entry, shown

    def _answers(self, hits: Sequence[Hit], judge: Callable[[Sequence[str]], bool | None]) -> list[ImageAnswer]:
        """Prefers a text in ASCII, since the figure's font has no Asian scripts."""
        return [
            ImageAnswer(
                image=self.picture(hit.item),
                text=next((text for text in hit.item.texts if text.isascii()), hit.item.texts[0]),
                score=hit.score,
                right=judge(hit.item.texts),
            )
            for hit in hits
        ]


@dataclass(frozen=True)
class IndexedData:
    """The data that is indexed.

    Attributes:
        shards: data/shards, with the pictures and their texts.
        raw: data/raw that they were made from; only its tables are read.
        filter_report: reports/filter, which has the rules that kept the pairs.
        store: where tars are that are not in `shards`, and where the machines of a cluster share their work.
    """

    shards: Path
    raw: Path
    filter_report: Path
    store: StoreConfig | None = None


@dataclass(frozen=True)
class IndexModel:
    """The model.

    Attributes:
        folder: has it; read by the machines of a cluster.
        encoder: the same, opened.
        digest: names it.
    """

    folder: Path
    encoder: SearchEncoder
    digest: str


def read_rules(filter_report: Path) -> dict[str, str | None]:
    """Code of each rule -> what it drops, as a condition; None if it was off.

    Raises:
        DataError: there is no report of the filter.
        FormatError: it has another layout.
    """
    path = filter_report / "report.json"
    try:
        return {str(row["reason"]): row["drops_where"] for row in json.loads(path.read_bytes())["funnel"]}
    except OSError:
        raise DataError(f"{path}: no such file; run `align filter` first") from None
    except (ValueError, LookupError, TypeError):
        raise FormatError(f"{path}: names no rules; run `align filter` again") from None


def index(
    config: IndexConfig,
    *,
    text_weight: float,
    model: IndexModel,
    data: IndexedData,
    engine: EngineConfig,
    out: Path,
    reports: Path,
) -> IndexReport:
    """Embeds and indexes all images, then asks the labelled queries.

    Args:
        config: section `index`.
        text_weight: `search.text_weight`.
        model: embeds.
        data: what is indexed.
        engine: who embeds; on one machine this process does, with all threads.
        out: data/index; replaced whole.
        reports: the folder of this stage's report; replaced whole.

    Raises:
        DataError: no shards, no image in them, data/raw is of another version, or the query file is missing.
        CorruptError: a shard's bytes do not match the manifest.
        ServiceError: a server is unavailable.
        LockedError: another run is making the index.
    """
    require_replaceable(out, "index")
    labelled = read_queries(config.queries) if config.queries else None
    manifest, rules = read_manifest(data.shards), read_rules(data.filter_report)
    raw_shards(data.raw)  # a missing folder is reported before the embedding, which may take hours
    num_images = sum(split.num_images for split in manifest.splits.values())
    if not num_images:
        raise DataError(f"{data.shards}: the shards hold no image, so there is nothing to index")
    key = key_of(config, model.digest, manifest, provenance.digest(__name__))
    shared = open_work(data.store, engine.runner, "index", key) if data.store else None
    here = {"num_workers": 1} if engine.runner == "local" else {}
    with (
        work_directory(out, "index", key) as folder,
        open_executor(engine.model_copy(update=here), folder / SCRATCH) as executor,
    ):
        fetch = fetcher(data.store) if data.store else None
        work = EmbedWork(Work(folder, shared), data.shards, fetch, config.thumbnail_px)
        embed_shards(work, executor, manifest, model.folder, model.encoder)

        def images() -> Iterator[tuple[pa.Table, NDArray[np.float32]]]:
            tars = with_addresses(data.raw, partial(embedded_tars, work, manifest), folder / ".addresses", engine)
            for rows in track(tars, what="index: joined", total=len(manifest.tasks)):
                if len(rows):
                    yield rows, np.frombuffer(b"".join(rows["vector"].to_pylist()), "<f4").reshape(len(rows), -1)

        build = partial(VectorIndex.build, num_vectors=num_images, exact_below=config.exact_below)
        facts = IndexFacts(
            model_digest=model.digest, shards_digest=manifest.digest, thumbnail_px=config.thumbnail_px, rules=rules
        )
        write_index(folder, images(), build, facts)
        index = ImageIndex.load(folder, VectorIndex.load)
        tars = manifest.tars

        def picture(item: IndexedImage) -> bytes:
            return item.image(local_tar(data.shards, tars[item.shard], fetch))

        if asked := ask_held_out(index, model.encoder):
            index = index.promising(promised(asked), folder)
        report = _ask(labelled, LabelledSearch(index, model.encoder, picture, text_weight), asked, reports)
        work.work.drop(RESULTS)
    return report


def _ask(labelled: QueryFile | None, search: LabelledSearch, held_out: Asked | None, reports: Path) -> IndexReport:
    """Asks the labelled queries and writes the report."""
    asked = [search.ask(query) for query in labelled.queries] if labelled else []
    composed = [search.subtract(query) for query in labelled.composed] if labelled else []
    entries = [entry for entry, _ in asked], [entry for entry, _ in composed]
    header = search.images.header
    report = IndexReport(
        metrics=index_metrics(header.num_items, *entries) | (surely_metrics(held_out) if held_out else {}),
        model_digest=header.model_digest,
        shards_digest=header.shards_digest,
        queries=entries[0],
        composed=entries[1],
    )
    queries, minus = ([query for _, shown in outcomes for query in shown] for outcomes in (asked, composed))
    with replace_directory(reports, "index") as part:
        risk = png(surely_figure(held_out)) if held_out else None
        if risk:
            write_bytes(part / "surely.png", risk)
        if queries:
            write_bytes(part / "queries.png", png(search_figure(queries)))
        if labelled is not None:
            sections = {
                "Labelled queries: the nearest images": queries,
                "Image, and image - text. Red: names the text taken away. Green: names what should remain": minus,
            }
            write_text(part / "report.html", search_page("Search", report.summary(), sections, risk))
        write_report(report, part)
    return report


def main(params: Params, args: argparse.Namespace) -> None:
    """`align index`: of the shards; with `--source`, of a catalogue."""
    if args.source is not None or args.update or args.model or args.out:
        from align.search.catalogue import main as main_of_catalogue

        main_of_catalogue(params, args)
        return
    config, search, paths = params.section(IndexConfig), params.section(SearchConfig), params.section(PathsConfig)
    with record_runtime("index", paths.runtime) as record:
        report = index(
            config,
            text_weight=search.text_weight,
            model=IndexModel(paths.finetuned, Embedder.load(paths.finetuned), model_digest(paths.finetuned)),
            data=IndexedData(paths.shards, paths.raw, paths.reports / "filter", params.section(StoreConfig)),
            engine=params.section(EngineConfig),
            out=paths.index,
            reports=paths.reports / "index",
        )
        record["num_images"] = report.metrics["index/num_images"]
    say(f"index: {report.summary()}")
