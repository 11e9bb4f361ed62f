"""index: embeds every image of the shards for search, and measures how often search finds what people ask for.

All splits are indexed, since search is for finding things; the images of the evaluation sets are not in the shards. The
index also has the addresses of each pair and the rules that kept it, so that it says by itself where a picture comes
from. If there is a file of labelled queries, the finished index is asked each of them. The texts of the images found
say which answers are right; the report counts and shows them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.search import IndexConfig, SearchConfig
from align.display.console import say, track
from align.display.figure import png
from align.display.report import record_runtime, write_report
from align.durable.files import replace_directory, require_replaceable, write_bytes, write_text
from align.errors import DataError, FormatError
from align.formats.image_index import Hit, ImageIndex, IndexedImage, write_index
from align.formats.indexed_images import ImagesWriter
from align.formats.labelled_queries import ComposedQuery, LabelledQuery, names, read_queries
from align.formats.model_folder import model_digest
from align.formats.raw import RawShard, raw_shards, read_table
from align.formats.shards import SPLITS, iter_samples, read_manifest, read_offsets
from align.model.embedder import IMAGE_BATCH, Embedder, Encoder
from align.pairs.picture import small
from align.search.answers import AnsweredQuery, ImageAnswer
from align.search.queries import compose, share_named
from align.search.report import ANSWER_CUT, SHARE_CUT, IndexReport, index_metrics, search_figure, search_page
from align.services.s3.store import materialised
from align.services.vector_index import VectorIndex
from align.statistics.chance import chance


@dataclass(frozen=True)
class LabelledOutcome:
    """What a labelled query returned: an entry of the report, and the queries to show (none if nothing was asked)."""

    entry: dict[str, Any]
    shown: list[AnsweredQuery]


@dataclass(frozen=True)
class LabelledSearch:
    """Asks an index the labelled queries.

    Attributes:
        images: the index.
        encoder: the model that the index was made with.
        shards: the folder of the images' bytes.
        text_weight: weight of the text that is taken away from an image.
    """

    images: ImageIndex
    encoder: Encoder
    shards: Path
    text_weight: float

    def ask(self, query: LabelledQuery) -> LabelledOutcome:
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
        entry = {
            "query": query.query,
            "expected": query.expected,
            "right": right,
            "chance": round(chance([num_right], len(self.images.items), ANSWER_CUT), 6),
            "found": answers,
        }
        shown = self._answers(hits, lambda texts: names(texts, query.expected))
        return LabelledOutcome(entry, [AnsweredQuery(query.query, None, shown, right)])

    def subtract(self, query: ComposedQuery) -> LabelledOutcome:
        """Asks with an image alone and with image - text. The image itself is excluded from both answers."""
        items = self.images.items
        named = (items[row] for row, texts in enumerate(items.texts()) if names(texts, [query.image_text]))
        image = min(named, key=lambda item: item.key, default=None)
        if image is None:
            say(f"index: no image has a text with {query.image_text!r}, so - {query.minus!r} is not asked")
            return LabelledOutcome({"image_text": query.image_text, "image_key": None, "minus": query.minus}, [])
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
        picture = image.image(self.shards)

        def judge(texts: Sequence[str]) -> bool | None:
            return False if names(texts, [query.minus]) else names(texts, query.expected) or None

        shown = [
            AnsweredQuery(f"image “{query.image_text}”", picture, self._answers(before, judge), None),
            AnsweredQuery(f"the same - “{query.minus}”", picture, self._answers(after, judge), None),
        ]
        return LabelledOutcome(entry, shown)

    def _answers(self, hits: Sequence[Hit], judge: Callable[[Sequence[str]], bool | None]) -> list[ImageAnswer]:
        """Prefers a text in ASCII, since the figure's font has no Asian scripts."""
        return [
            ImageAnswer(
                image=hit.item.image(self.shards),
                text=next((text for text in hit.item.texts if text.isascii()), hit.item.texts[0]),
                score=hit.score,
                right=judge(hit.item.texts),
            )
            for hit in hits
        ]


#: Rows of data/raw that are compared at once. Each time, the keys of the index are hashed again.
_ROWS_AT_ONCE = 1 << 18
_COLUMNS = ("key", "url", "page_url")


@dataclass(frozen=True)
class IndexedData:
    """The data that is indexed.

    Attributes:
        shards: data/shards, with the pictures and their texts.
        raw: data/raw that they were made from; only its tables are read.
        filter_report: reports/filter, which has the rules that kept the pairs.
    """

    shards: Path
    raw: Path
    filter_report: Path


def read_addresses(raw: Path, pairs: pa.Table) -> tuple[pa.Array, pa.Array]:
    """The addresses of pairs' pages and pictures; empty if there is none.

    Only web addresses of pictures count: a file's name says where somebody keeps their data. In a table of ours the
    sha256 of the picture is compared, since every ingest numbers its keys again. A table of img2dataset has keys of its
    own, and no sha256 without its tar, which may be far away.

    Args:
        raw: data/raw.
        pairs: `key` and `image_id`.

    Returns:
        Two arrays of strings, parallel to the pairs.

    Raises:
        DataError: a table is missing or unreadable, or lacks a pair: it is of another version of the data.
        FormatError: a table lacks a column.
    """
    keys, image_ids = (pairs[name].combine_chunks() for name in ("key", "image_id"))
    rows = np.full(len(pairs), -1, np.int64)
    found: list[pa.Table] = []
    num_found = 0
    some: list[pa.Table] = []
    shards = raw_shards(raw)
    for number, shard in enumerate(shards, 1):
        some.append(_rows(shard))
        if number < len(shards) and sum(map(len, some)) < _ROWS_AT_ONCE:
            continue
        table = pa.concat_tables(some).combine_chunks()
        some.clear()
        where = pc.index_in(table["key"], value_set=keys).combine_chunks()
        table = table.filter(where.is_valid())
        at = where.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        same = pc.or_kleene(pc.is_null(hashes := table["sha256"]), pc.equal(hashes, image_ids.take(pa.array(at))))
        same = same.to_numpy()
        table, at = table.filter(pa.array(same)), at[same]
        rows[at] = num_found + np.arange(len(at))
        num_found += len(at)
        found.append(table.select(["page_url", "url"]))
    if (missing := np.flatnonzero(rows < 0)).size:
        first = keys[int(missing[0])].as_py()
        raise DataError(
            f"{raw}: has not {len(missing):,} of the {len(rows):,} pairs of the shards, such as {first}: "
            "they are of different versions of the data; run `dvc repro`"
        )
    every = pa.concat_tables(found).combine_chunks().take(pa.array(rows))
    pages, pictures = (pc.fill_null(every[name].combine_chunks(), "") for name in ("page_url", "url"))
    return pages, pc.if_else(pc.match_substring_regex(pictures, r"(?i)^https?://"), pictures, "")


def _rows(shard: RawShard) -> pa.Table:
    """Keys and addresses of a table, and the sha256 of each picture: null in a table of img2dataset."""
    try:
        names = pq.read_schema(shard.table).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard.table}: not a readable parquet file ({error}); make the folder again") from None
    if "image_key" not in names:
        table = read_table(shard, _COLUMNS)
        return table.append_column("sha256", pa.nulls(len(table), pa.string()))
    table = read_table(shard, (*_COLUMNS, "sha256"))
    column = table.column_names.index("sha256")
    return table.set_column(column, "sha256", pc.fill_null(table["sha256"], "")).select([*_COLUMNS, "sha256"])


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


#: A picture of 160 px takes about 3 kB.
_QUALITY = 65


def read_images(shards: Path) -> Iterator[tuple[IndexedImage, bytes]]:
    """Yields the description and the bytes of every image of every split.

    Raises:
        DataError: a shard is missing.
        CorruptError: a shard's bytes do not match the manifest.
    """
    for split in SPLITS:
        ranges = [
            (shard.path, jpg_offset, jpg_size)
            for shard in read_manifest(shards).splits[split].shards
            for jpg_offset, jpg_size, _, _ in read_offsets(shards / shard.offsets_path, shard.offsets_sha256).tolist()
        ]
        for sample, (path, offset, size) in zip(iter_samples(shards, split), ranges, strict=True):
            item = IndexedImage(sample.key, sample.image_id, sample.texts, split, path, offset, size, sample.keys)
            yield item, sample.image


def thumbnail(image: bytes, side_px: int) -> bytes:
    """A JPEG of at most `side_px` per side. Equal images give equal bytes with the same version of Pillow.

    Args:
        image: an encoded image.
        side_px: 0 makes none: the result is empty.

    Raises:
        PictureError: it does not decode.
    """
    if not side_px:
        return b""
    buffer = io.BytesIO()
    small(image, side_px).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


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
