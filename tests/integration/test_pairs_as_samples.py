"""`ingest.pairs_as_samples`: a tar sample for every pair, and nothing else is decided otherwise."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from align.formats.filtered import decisions_digest
from align.formats.policy import Entry, OptedOut
from align.formats.raw import iter_images, raw_shards, read_raw_manifest, read_table
from align.lineage.take_down.purge_plan import opted_out_pairs
from align.lineage.take_down.purge_raw import purge_raw
from align.shard.shard import shard
from tests.support import small_data
from tests.support.both_ways import by_the_filter
from tests.support.pictures import blurred_png
from tests.support.reading import ingested, rows_of, source_at
from tests.support.small_shards import CONFIG, ENGINE, STORE, folders
from tests.support.warc_records import page, response, write_archive
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

VALUES = ("ingest.shard_size=40", "download.resize_px=210")
PAIRS = (*VALUES, "ingest.pairs_as_samples=true")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures on pages and their copies, some at a second address; the first text of some is too short."""
    pictures = {f"http://x.example/{n}.png": blurred_png(n, (240 + n, 230)) for n in range(30)}
    pictures |= {f"http://x.example/copy-{n}.png": pictures[f"http://x.example/{n}.png"] for n in range(0, 30, 5)}
    pictures["http://x.example/broken.png"] = b"no picture"
    pages = []
    for number in range(4):
        images = "<img src=gone.png alt='a dead link here'>"
        for at, url in enumerate(pictures):
            if at % (number + 1) == 0:
                text = "short" if number == 0 and at % 3 == 0 else f"a picture of thing {at} on {number}"
                images += f"<img src='{url}' alt='{text}'>"
        pages.append(page(f"http://x.example/{number}/", images))
    records = [response(url, data, "image/png") for url, data in pictures.items()]
    return write_archive(tmp_path_factory.mktemp("archive") / "a.warc.gz", [*pages, *records])


@pytest.mark.costs(4, "ingest, filter and shard of both, of which the pictures are looked at")
def test_decisions_and_shards_are_equal(tmp_path: Path, archive: Path) -> None:
    images, pairs = tmp_path / "images", tmp_path / "pairs"
    of_images, of_pairs = ingested(images, archive, *VALUES), ingested(pairs, archive, *PAIRS)
    assert [row | {"image_key": None} for row in of_images] == [row | {"image_key": None} for row in of_pairs]
    with_picture = [row for row in of_pairs if row["status"] == "success"]
    assert all(row["image_key"] == row["key"] for row in with_picture)
    distinct = {row["sha256"] for row in with_picture}
    assert (len(of_pairs), len(with_picture), len(distinct)) == (83, 75, 30)
    for root, samples in ((images, "images"), (pairs, "pairs")):
        manifest = read_raw_manifest(root / "raw")
        assert manifest is not None and manifest.samples == samples
    once, stored = (
        [sample for one in raw_shards(root / "raw") for sample in iter_images(one)] for root in (images, pairs)
    )
    assert (len(once), len(stored)) == (35, 75)  # five pictures are in two shards
    assert dict(once).items() <= dict(stored).items()
    assert _texts(pairs / "raw") == {row["key"]: row["caption"] for row in with_picture}
    decided = [by_the_filter(root / "raw", root) for root in (images, pairs)]
    assert decided[0] == decided[1]
    assert 20 < sum(count for decision, count in decided[0].items() if decision[2]) < len(with_picture)
    for name in ("decisions/00000.parquet", "facts/00001.parquet", "images.parquet"):
        assert (images / "filtered" / name).read_bytes() == (pairs / "filtered" / name).read_bytes()
    for root in (images, pairs):
        small_data.write_verdict(root / "quality", passed=True, data=decisions_digest(root / "filtered"))
        shard(CONFIG, STORE, folders(root), ENGINE)
    written = [
        {path.name: path.read_bytes() for path in sorted((root / "shards").rglob("*.tar"))} for root in (images, pairs)
    ]
    assert written[0] == written[1]


def _texts(raw: Path) -> dict[str, str]:
    """The texts of the tar samples, by key."""
    texts = {}
    for path in raw.glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                file = tar.extractfile(name)
                if file is not None and name.endswith(".txt"):
                    texts[name.removesuffix(".txt")] = file.read().decode()
    return texts


def test_the_tars_alone_have_all_pairs(tmp_path: Path, archive: Path) -> None:
    rows = ingested(tmp_path, archive, *PAIRS)
    for table in (tmp_path / "raw").glob("*.parquet"):
        table.unlink()
    found, _ = rows_of(source_at(tmp_path / "raw", "source=shards"))
    assert Counter((row["url"], row["text"]) for row in found) == Counter(
        (row["url"], row["caption"]) for row in rows if row["status"] == "success"
    )


def test_a_second_ingest_and_a_purge_keep_the_layout(tmp_path: Path) -> None:
    with WebServer() as server:
        server.routes |= {"/good.png": answer(blurred_png(1, (240, 230))), "/late.png": answer(b"", 503)}
        table = tmp_path / "table.csv"
        lines = [("good.png", "good"), ("late.png", "late"), ("good.png", "good again"), ("late.png", "late again")]
        table.write_text("url,caption\n" + "".join(f"{server.url('/' + name)},{text}\n" for name, text in lines))
        values = (*VALUES, "ingest.source=url_table", "ingest.skip_hopeless=false", "download.num_retries=0")
        ingested(tmp_path, table, *values, "ingest.pairs_as_samples=true")
        server.routes["/late.png"] = server.routes["/good.png"]
        ingested(tmp_path, table, *values, "ingest.pairs_as_samples=true")
    [one] = raw_shards(tmp_path / "raw")
    assert [row["image_key"] for row in read_table(one).to_pylist()] == [f"00000000{n}" for n in range(4)]
    assert [key for key, _ in iter_images(one)] == [f"00000000{n}" for n in range(4)]
    opted_out = OptedOut([Entry("url", server.url("/late.png"), "", "2026-01-01")])
    purge_raw(tmp_path / "raw", opted_out, opted_out_pairs(tmp_path / "raw", opted_out))
    assert [key for key, _ in iter_images(*raw_shards(tmp_path / "raw"))] == ["000000000", "000000002"]
    manifest = read_raw_manifest(tmp_path / "raw")
    assert manifest is not None and manifest.samples == "pairs"


def test_a_manifest_of_before_says_images(tmp_path: Path, archive: Path) -> None:
    ingested(tmp_path, archive, *VALUES)
    path = tmp_path / "raw/manifest.json"
    values = json.loads(path.read_bytes())
    del values["samples"]
    path.write_text(json.dumps(values))
    manifest = read_raw_manifest(tmp_path / "raw")
    assert manifest is not None and manifest.samples == "images"
