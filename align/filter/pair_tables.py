"""The tables of a shard that the SQL reads: PAIRS, UNIGRAMS and BIGRAMS, from its rows, its texts and its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.filter.tables import BIGRAMS, MAX_ROWS, PAIRS, UNIGRAMS
from align.filter.words import Int64s, TextFacts, hashes, normal_forms, text_facts
from align.formats.policy import OptedOut
from align.formats.raw import STATED_SHA256
from align.formats.statuses import FAILED_TO_DOWNLOAD
from align.pairs.languages import languages
from align.pairs.text import MAX_CHARACTERS
from align.pairs.urls import canonical_or_as_is


def image_hashes(image_ids: Sequence[str]) -> Int64s:
    """The first 64 bits of each sha256, as a signed integer."""
    digits = "".join([image_id[:16] for image_id in image_ids])
    return np.frombuffer(bytes.fromhex(digits), ">i8").astype(np.int64)


def image_hash(image_id: str) -> int:
    """The first 64 bits of a sha256, as a signed integer."""
    return int(image_hashes([image_id])[0])


def pair_tables(
    index: int, table: pa.Table, images: pa.Table, opted_out: OptedOut, config: FilterConfig
) -> dict[str, pa.Table]:
    """UNIGRAMS, BIGRAMS and last PAIRS of a shard.

    Args:
        index: the shard's position in the listing.
        table: its rows of data/raw, in order of their keys.
        images: its IMAGES.
        opted_out: entries whose pairs are flagged.
        config: what no rule needs is null here. Characters beyond `max_characters` are counted, and not looked at.
    """
    row_numbers = index * MAX_ROWS + np.arange(len(table))
    captions = table["caption"].combine_chunks()
    texts = normal_forms(captions)
    # White space in a caption that was cut may hide how long it was.
    raw_lengths, lengths = pc.utf8_length(captions), pc.utf8_length(texts)
    lengths = pc.if_else(pc.fill_null(pc.less(raw_lengths, MAX_CHARACTERS), True), lengths, MAX_CHARACTERS)
    texts = pc.utf8_rtrim(pc.utf8_slice_codeunits(texts, 0, config.max_characters), " ")
    facts = text_facts(texts)
    offsets, bigrams = facts.bigrams()
    return {
        "unigrams": pa.table([facts.vocabulary, facts.occurrences], schema=UNIGRAMS),
        "bigrams": pa.table([np.repeat(row_numbers, np.diff(offsets)), bigrams], schema=BIGRAMS),
        "pairs": _pairs(
            row_numbers, table.append_column("num_characters", lengths), texts, facts, images, opted_out, config
        ),
    }


def word_table(pairs: Path) -> pa.Table:
    """All words of a shard, from the file of its PAIRS, with the columns of BIGRAMS."""
    table = pq.ParquetFile(pairs).read(["row_number", "text"])
    facts = text_facts(table["text"].combine_chunks())
    return pa.table([np.repeat(table["row_number"].to_numpy(), facts.num_unigrams), facts.words], schema=BIGRAMS)


def _pairs(
    row_numbers: Int64s,
    table: pa.Table,
    texts: pa.StringArray,
    facts: TextFacts,
    images: pa.Table,
    opted_out: OptedOut,
    config: FilterConfig,
) -> pa.Table:
    ids = table["sha256"].combine_chunks().dictionary_encode()
    distinct_hashes = pa.array(image_hashes(ids.dictionary.to_pylist()))
    row_in_images = pc.index_in(table["sha256"], images["image_id"].combine_chunks()).combine_chunks()
    names = ["image_key", "is_picture", "decodable", "width_px", "height_px", "twin"]
    known = images.select(names).take(row_in_images)
    has_bytes = pc.is_valid(row_in_images)
    # Bytes that are not a picture do not count as an image: ingest checks their headers, and does not store them
    # either.
    has_image = pc.and_(pc.is_valid(table["sha256"]), pc.fill_null(known["is_picture"], True))
    columns = {
        "row_number": row_numbers,
        "key": table["key"],
        "opted_out": _opted_out(table, opted_out),
        "status": pc.fill_null(table["status"], FAILED_TO_DOWNLOAD),
        "image_id": table["sha256"],
        "image_key": known["image_key"],  # of the first pair, although others may have a copy of their own
        "image_hash": pc.if_else(has_image, distinct_hashes.take(ids.indices), None),
        "url_hash": _url_hashes(table["url"], has_image),
        "has_bytes": has_bytes,
        **{name: known[name] for name in ("decodable", "twin")},
        **{
            name: pc.if_else(has_bytes, pc.coalesce(table[original], known[name]), None)
            for name, original in (("width_px", "original_width"), ("height_px", "original_height"))
        },
        "num_evaluation_sets": pc.list_value_length(images["evaluation_sets"]).take(row_in_images).fill_null(0),
        "text": texts,
        "text_hash": _hashes_where(pc.not_equal(texts, ""), pa.chunked_array([texts])),
        "num_characters": table["num_characters"],
        "num_words": pa.array(facts.num_words, pa.int32()),
        "only_word_hash": _only_words(facts),
        "is_filename": pa.array(facts.is_filename),
        "language": _languages(texts) if config.languages is not None else pa.nulls(len(texts), pa.string()),
        "num_emails": pa.array(facts.num_emails, pa.int32()),
        "num_phones": pa.array(facts.num_phones, pa.int32()),
        "licence_allowed": _allowed(table["licence"], config.licences) if config.licences else pa.nulls(len(texts)),
    }
    return pa.table([columns[name] for name in PAIRS.names], schema=PAIRS)


def _only_words(facts: TextFacts) -> pa.Array:
    alone = facts.num_unigrams == 1
    words = np.zeros(len(alone), np.int64)
    words[alone] = facts.words[facts.offsets[:-1][alone]]
    return pa.array(words, mask=~alone)


def _languages(texts: pa.StringArray) -> pa.Array:
    """The language of each text; guessing is slow and alt-texts repeat, so each distinct text is guessed once."""
    distinct = texts.dictionary_encode()
    return pa.array(languages(distinct.dictionary.to_pylist()), pa.string()).take(distinct.indices)


def _allowed(licences: pa.ChunkedArray, beginnings: Sequence[str]) -> pa.Array:
    return pa.array([licence is not None and licence.startswith(tuple(beginnings)) for licence in licences.to_pylist()])


def _opted_out(table: pa.Table, opted_out: OptedOut) -> pa.Array:
    if not opted_out:
        return pa.nulls(len(table), pa.string())
    addresses = zip(*(table[name].to_pylist() for name in ("url", "page_url", "sha256", STATED_SHA256)), strict=True)
    entries = (opted_out.entry(*row) or opted_out.entry(None, None, stated) for *row, stated in addresses)
    return pa.array((None if entry is None else ":".join(entry) for entry in entries), pa.string())


def _url_hashes(urls: pa.ChunkedArray, has_image: pa.ChunkedArray) -> pa.Array:
    """A hash of the URL of each pair without image, equal for all spellings; null for the others."""
    without = np.flatnonzero(pc.and_(pc.invert(has_image), pc.is_valid(urls)).to_numpy(zero_copy_only=False))
    spelt = [canonical_or_as_is(url) for url in urls.take(pa.array(without)).to_pylist()]
    values, is_null = np.zeros(len(urls), np.int64), np.ones(len(urls), bool)
    values[without] = hashes(pa.array(spelt, pa.string()))
    is_null[without] = False
    return pa.array(values, mask=is_null)


def _hashes_where(wanted: pa.BooleanArray | pa.ChunkedArray, texts: pa.StringArray | pa.ChunkedArray) -> pa.Array:
    """The hashes of the strings that are wanted and not null; null for the others."""
    hashed = pc.and_(wanted, pc.is_valid(texts)).to_numpy(zero_copy_only=False)
    values = np.zeros(len(texts), np.int64)
    values[hashed] = hashes(texts.filter(pa.array(hashed)).combine_chunks())
    return pa.array(values, mask=~hashed)
