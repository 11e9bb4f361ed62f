"""Pairs of any source: strings without end are cut where they enter, and counted."""

import pyarrow as pa

from align.ingest.sources.candidates import CANDIDATES, Candidate, bounded, num_cut
from align.ingest.sources.pages import PageImage
from align.ingest.sources.reading import Batches
from align.pairs.text import MAX_CHARACTERS

ENDLESS = "x" * 1_000_000


def test_an_ordinary_pair_stays_what_it_is() -> None:
    pair = Candidate("http://x/1", "a text", "alt", "http://x/", None, "a.warc", 7, b"bytes")
    assert bounded(pair) is pair


def test_every_string_is_bounded() -> None:
    pair = bounded(Candidate(ENDLESS, ENDLESS, ENDLESS, ENDLESS, ENDLESS))
    assert [len(value or "") for value in pair[:5]] == [2048, MAX_CHARACTERS, 1000, MAX_CHARACTERS, 1000]
    assert bounded(Candidate(ENDLESS, "", None)).problem == "URL too long"
    longest = Candidate("u" * MAX_CHARACTERS, "t" * MAX_CHARACTERS, "alt", "p" * MAX_CHARACTERS)
    assert bounded(longest) == longest


def test_batches_of_every_kind_hold_bounded_strings() -> None:
    batches = Batches()
    batches.add(Candidate("http://x/1", ENDLESS, "caption"))
    batches.add_page(
        "http://x/" + ENDLESS, [PageImage("http://x/2", ENDLESS, "alt"), PageImage("http://x/3", "", None)]
    )
    batches.add_response("http://x/" + ENDLESS, 200, None, "a.warc", 0)
    candidates, responses = batches.rest()
    assert [len(text) for text in candidates["text"].to_pylist()] == [MAX_CHARACTERS, MAX_CHARACTERS, 0]
    assert num_cut(candidates) == {"texts_cut": 2, "page_urls_cut": 2}
    # no pair's address is as long: it cannot be taken for that of another response
    assert len(responses["url"][0].as_py()) == MAX_CHARACTERS + 1
    assert num_cut(pa.RecordBatch.from_pylist([], CANDIDATES)) == {}
