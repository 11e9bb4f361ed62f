"""index: embeds every image of the shards for search, and measures how often search finds what people ask for.

All splits are indexed, since search is for finding things; the images of the evaluation sets are not in the shards. The
index also has the addresses of each pair and the rules that kept it, so that it says by itself where a picture comes
from. If there is a file of labelled queries, the report says how many find a right image, and shows what was found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.config import Params
from align.config.index import IndexConfig
from align.config.paths import PathsConfig
from align.config.search import SearchConfig
from align.config.store import StoreConfig
from align.display.console import say, track
from align.display.figure import png
from align.display.report import record_runtime, write_report
from align.durable.files import replace_directory, require_replaceable, write_bytes, write_text
from align.errors import DataError
from align.formats.image_index import ImageIndex, IndexedImage, write_index
from align.formats.indexed_images import ImagesWriter
from align.formats.labelled_queries import read_queries
from align.formats.model_folder import model_digest
from align.formats.raw import raw_shards
from align.formats.shards import read_manifest
from align.model.embedder import IMAGE_BATCH, Embedder, Encoder
from align.search.addresses import IndexedData, read_addresses, read_rules
from align.search.answers import AnsweredQuery
from align.search.figures import search_figure
from align.search.images import read_images, thumbnail
from align.search.labelled import LabelledSearch
from align.search.page import search_page
from align.search.report import IndexReport, index_metrics
from align.services.s3.store import materialised
from align.services.vector_index import VectorIndex

#: Images that are embedded at a time: whole batches, so that the vectors are the same as those of all images at once.
_IMAGES_AT_ONCE = 64 * IMAGE_BATCH


def index(
    config: IndexConfig,
    *,
    text_weight: float,
    encoder: Encoder,
    model_digest: str,
    data: IndexedData,
    out: Path,
    reports: Path,
) -> IndexReport:
    """Embeds and indexes all images, then asks the labelled queries.

    Args:
        config: section `index`.
        text_weight: `search.text_weight`.
        encoder: the model.
        model_digest: the digest that names the model.
        data: what is indexed.
        out: data/index; replaced whole.
        reports: the folder of this stage's report; replaced whole.

    Raises:
        DataError: no shards, no image in them, data/raw is of another version, or the query file is missing.
        CorruptError: a shard's bytes do not match the manifest.
    """
    require_replaceable(out, "index")
    labelled = read_queries(config.queries) if config.queries else None
    manifest, rules = read_manifest(data.shards), read_rules(data.filter_report)
    raw_shards(data.raw)  # a missing folder is reported before the embedding, which may take hours
    num_images = sum(split.num_images for split in manifest.splits.values())
    if not num_images:
        raise DataError(f"{data.shards}: the shards hold no image, so there is nothing to index")

    def build(path: Path, images: ImagesWriter) -> VectorIndex:
        embedded = _embedded(track(read_images(data.shards), what="index", total=num_images), encoder, config, images)
        vectors = VectorIndex.build(embedded, path, num_vectors=num_images, exact_below=config.exact_below)
        images.set_addresses(*read_addresses(data.raw, images.pairs()))
        return vectors

    write_index(
        out, build, model_digest=model_digest, shards_digest=manifest.digest, thumbnail_px=config.thumbnail_px,
        rules=rules,
    )  # fmt: skip
    images = ImageIndex.load(out, VectorIndex.load)

    labelled_search = LabelledSearch(images, encoder, data.shards, text_weight)
    asked = [labelled_search.ask(query) for query in labelled.queries] if labelled else []
    composed = [labelled_search.subtract(query) for query in labelled.composed] if labelled else []
    entries = [outcome.entry for outcome in asked], [outcome.entry for outcome in composed]
    report = IndexReport(
        metrics=index_metrics(num_images, *entries),
        model_digest=model_digest,
        shards_digest=manifest.digest,
        queries=entries[0],
        composed=entries[1],
    )
    _write(
        report,
        queries=[query for outcome in asked for query in outcome.shown],
        minus=[query for outcome in composed for query in outcome.shown],
        with_page=labelled is not None,
        reports=reports,
    )
    return report


def _embedded(
    rows: Iterable[tuple[IndexedImage, bytes]], encoder: Encoder, config: IndexConfig, images: ImagesWriter
) -> Iterator[NDArray[np.float32]]:
    """Yields the vectors of some images at a time, after their thumbnails were written."""
    rows = iter(rows)
    while some := list(islice(rows, _IMAGES_AT_ONCE)):
        vectors = encoder.embed_images(image for _, image in some)
        for item, image in some:
            images.add(item, thumbnail(image, config.thumbnail_px))
        yield vectors


def _write(
    report: IndexReport,
    *,
    queries: Sequence[AnsweredQuery],
    minus: Sequence[AnsweredQuery],
    with_page: bool,
    reports: Path,
) -> None:
    with replace_directory(reports, "index") as part:
        for name, shown in (("queries.png", queries), ("minus.png", minus)):
            if shown:
                write_bytes(part / name, png(search_figure(shown)))
        if with_page:
            sections = {
                "Labelled queries: the nearest images": queries,
                "Image, and image - text. Red: names the text taken away. Green: names what should remain": minus,
            }
            write_text(part / "report.html", search_page("Search", report.summary(), sections))
        write_report(report, part)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align index`."""
    config, search, paths = params.section(IndexConfig), params.section(SearchConfig), params.section(PathsConfig)
    with record_runtime("index", paths.runtime) as record:
        report = index(
            config,
            text_weight=search.text_weight,
            encoder=Embedder.load(paths.finetuned),
            model_digest=model_digest(paths.finetuned),
            data=IndexedData(
                shards=materialised(paths.shards, params.section(StoreConfig)),
                raw=paths.raw,
                filter_report=paths.reports / "filter",
            ),
            out=paths.index,
            reports=paths.reports / "index",
        )
        record["num_images"] = report.metrics["index/num_images"]
    say(f"index: {report.summary()}")
