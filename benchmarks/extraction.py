"""Pages -> pairs: our source against FastWARC and BeautifulSoup on lxml with the same rules.

Whole extraction on both sides: records read, decompressed, decoded and parsed, addresses resolved, rows made (ours as
Arrow batches, theirs as tuples). Two files are made of the pages of data/sample: the pages as they are; pages as large
as the web's, between whose images stand the text, links and wrappers of articles. Both sides must find the same pairs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.ingest.sources import Source
from align.ingest.sources.pages import decode_html, page_images
from benchmarks.measure import Comparison, compare, cpu_s
from benchmarks.world import World
from tests.support import ROOT
from tests.support.own_process import in_process
from tests.support.peers import build_peers, version_of
from tests.support.reading import source_at
from tests.support.warc_records import page

REPETITIONS = 5
NUM_LARGE_PAGES = 300
#: Blocks of an article between two images: some 100 KB and 1,500 elements a page.
_BLOCKS_PER_IMAGE = 12
_IMAGES_PER_PAGE = 16


@dataclass(frozen=True)
class _Page:
    """One page of the sample: its address, its bytes, and what our own rules find in it."""

    url: str
    body: bytes
    pairs: list[tuple[str, str]]


def run(world: World) -> list[Comparison]:
    """The rows of the table."""
    python = build_peers()
    pages = list(_sample_pages())
    pairs = [pair for one in pages for pair in one.pairs]
    large = [
        _large_page(number, pairs[number * _IMAGES_PER_PAGE : (number + 1) * _IMAGES_PER_PAGE])
        for number in range(NUM_LARGE_PAGES)
    ]
    records = [page(one.url, one.body) for one in pages]
    few = _write(world.root / "few.warc.gz", records[:3])
    soup = f"FastWARC, BeautifulSoup {version_of('beautifulsoup4')} + lxml, same rules"
    return [
        _row("extraction, pages of data/sample", soup, python, few,
             _write(world.root / "small.warc.gz", records * 4), 4 * len(records)),
        _row("extraction, pages of some 100 KB", soup, python, few,
             _write(world.root / "large.warc.gz", [page(one.url, one.body) for one in large]), len(large)),
    ]  # fmt: skip


def extract(file: Path) -> list[tuple[str, str]]:
    """All pairs of a file, by our source."""
    return [
        (row["url"], row["text"])
        for batch in _scanned(source_at(file, "images_from=web")) if "text" in batch.schema.names
        for row in batch.select(["url", "text"]).to_pylist()
    ]  # fmt: skip


def _scanned(source: Source) -> Iterator[pa.RecordBatch]:
    return source.scan(source.files[0], Counter())


def _scan(file: Path) -> None:
    """For the peak of memory: batches are let go, as they are where they are written to disk."""
    for _ in _scanned(source_at(file, "images_from=web")):
        pass


def _row(what: str, peer: str, python: Path, few: Path, file: Path, num_pages: int) -> Comparison:
    num_pairs, digest = found_by_us(file)
    ours_s, theirs_s, peaks = [], [], []
    source = source_at(file, "images_from=web")
    for _ in range(REPETITIONS):
        ours_s.append(cpu_s(lambda: list(_scanned(source))))
        found = found_by_peer(python, file, few)
        if found["digest"] != digest:
            raise RuntimeError(f"{peer} found {found['num']:,} pairs in {file.name}, we {num_pairs:,}, or others")
        theirs_s.append(found["cpu_s"])
        peaks.append(found["peak_bytes"])
    _, peak = in_process(_scan, file)
    return compare(
        what, peer, "pages / CPU s", items=num_pages, ours_s=ours_s, theirs_s=theirs_s,
        note=f"{num_pairs:,} equal pairs; peak memory {peak >> 20:,} against {max(peaks) >> 20:,} MiB",
    )  # fmt: skip


def found_by_us(file: Path) -> tuple[int, str]:
    """Number and digest of what the peer must find, too."""
    pairs = extract(file)
    return len(pairs), hashlib.sha256("\n".join(f"{url}\t{text}" for url, text in pairs).encode()).hexdigest()


def found_by_peer(python: Path, file: Path, few: Path) -> dict[str, Any]:
    """What `extraction_peers.py` prints."""
    script = Path(__file__).with_name("extraction_peers.py")
    done = subprocess.run([str(python), str(script), str(file), str(few)], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _sample_pages() -> Iterator[_Page]:
    text_from = ("alt", "figcaption", "title", "aria-label")
    with (ROOT / "data/sample/archive.warc.gz").open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            if record.http_headers.status_code != 200 or record.http_content_type != "text/html":
                continue
            url, body = record.headers["WARC-Target-URI"], record.reader.read()
            found, _ = page_images(body, url, record.http_charset, text_from)
            text = decode_html(body, record.http_charset)
            yield _Page(url, text.encode(), [(one.url, one.text) for one in found])


def _large_page(number: int, pairs: Sequence[tuple[str, str]]) -> _Page:
    """An article: the pairs' images in links, some lazy, some responsive, among their own words."""
    text = " ".join(words for _, words in pairs)
    blocks = []
    for at, (url, words) in enumerate(pairs):
        for block in range(_BLOCKS_PER_IMAGE):
            start = (at * 97 + block * 31) % max(1, len(text) - 200)
            blocks.append(
                f'<div class="block b{block}" id="s{at}-{block}"><h3>{_escaped(words[:40])}</h3><p class="text">'
                f'{_escaped(text[start : start + 200])} <a href="/topic/{at}/{block}">more <em>of</em> it</a></p>'
                f'<ul><li><a href="/tag/{block}">{block}</a></li><li><span data-x="{at}">{at}</span></li></ul></div>'
            )
        source = (f'src="{url}"', f'src="/pixel.gif" data-src="{url}"', f'src="/s.jpg" srcset="{url} 1280w"')[at % 3]
        blocks.append(f'<a href="/i/{at}"><img {source} alt="{_escaped(words)}"></a>')
    body = f"<!DOCTYPE html><html><head><title>{number}</title></head><body>{''.join(blocks)}</body></html>"
    return _Page(f"https://news.example/{number}/article.html", body.encode(), list(pairs))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _write(path: Path, records: Iterable[bytes]) -> Path:
    path.write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    return path
