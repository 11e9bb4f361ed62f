"""Each kind of source, with pictures of data/sample: by itself, then by `align ingest`; here, in S3 and on the web."""

import base64
import gzip
import hashlib
import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.formats.raw import raw_shards
from tests.support.odd_archives import ODDITIES, clean_archive, odd_archive, stored_responses
from tests.support.ranges import ranges
from tests.support.reading import ingested, rows_of, source_at
from tests.support.s3_server import serve
from tests.support.tars import tar
from tests.support.warc_records import page, record, response, wat, write_archive
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer


@dataclass(frozen=True)
class Case:
    """A source, and what it holds.

    Attributes:
        location: of the source.
        overrides: of section `ingest`.
        pairs: (text, its source, the picture's bytes or None), in order.
        problems: of the rows without bytes, what data/raw says; by text.
    """

    location: Path | str
    overrides: list[str]
    pairs: list[tuple[str, str | None, bytes | None]]
    problems: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def pictures(sample):
    """Twelve different pictures of the sample: JPEG, PNG and WebP."""
    source = source_at(sample / "archive.warc.gz")
    distinct = {}
    counts = Counter()
    for batch in source.scan(source.files[0], counts):
        if "text" not in batch.schema.names:
            for row in batch.to_pylist():
                if row["url"].endswith((".jpg", ".png", ".webp")) and len(distinct) < 12:
                    distinct.setdefault(source.read(row["file"], row["offset"]) or b"")
    assert counts["pages"] > 0
    return list(distinct)


@pytest.fixture(scope="module")
def web(pictures):
    """Serves /0, /1, ... and nothing else."""
    with WebServer() as server:
        for number, picture in enumerate(pictures):
            server.routes[f"/{number}"] = answer(picture)
        yield server


def warc(root, pictures, web):
    """Two files: pages in one, pictures in the other, as crawlers split them."""
    japanese = '<meta charset="Shift_JIS"><title>写真</title><img src="/jp/髙.png" alt="髙い山①の写真">'
    russian = "<base href='http://img.example/ru/'><img src=собака.jpg alt='Собака на траве'>"
    responsive = (
        "<img src=/small.jpg srcset='/small.jpg 320w, /large,1.jpg 1280w' alt=responsive>"
        "<picture><source srcset='/p.webp 1x, /p2.webp 2x'><img src=/p.jpg alt=picture></picture>"
    )
    lazy = (
        "<figure><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw=' data-src=lazy.jpg alt=''>"
        "<figcaption>From the <i>caption</i></figcaption></figure>"
        "<img src=//cdn.example/t.png alt=' ' title='From the title'><img src=old.png aria-label='From the label'>"
        f"<img src='data:image/png;base64,{base64.b64encode(pictures[7]).decode()}' alt='inline'>"
        "<img src=missing.png alt='not crawled'><img src=lazy.jpg>"
    )
    write_archive(root / "pages.warc.zst", [
        page("http://a.example/jp/", japanese.encode("cp932"), "text/html"),
        page("http://a.example/ru/", russian.encode("cp1251"), "text/html; charset=windows-1251"),
        page("http://a.example/responsive", responsive),
        page("http://a.example/lazy/page", lazy),
    ])  # fmt: skip
    write_archive(root / "pictures.warc.gz", [
        response("http://a.example/jp/%E9%AB%99.png", pictures[0], "image/png"),
        response("http://img.example/ru/%D1%81%D0%BE%D0%B1%D0%B0%D0%BA%D0%B0.jpg", pictures[1], "image/jpeg"),
        response("http://a.example/large,1.jpg", gzip.compress(pictures[2]), "image/jpeg",
                 headers="Content-Encoding: gzip\r\n"),
        response("http://a.example/p2.webp", pictures[3], "image/webp"),
        record("resource", "http://a.example/lazy/lazy.jpg", pictures[4], "image/jpeg"),
        response("http://cdn.example/t.png", pictures[5], "image/png"),
        response("http://a.example/lazy/old.png", b"", "text/html", "301 Moved", "Location: /new.png\r\n"),
        response("http://a.example/new.png", pictures[6], "image/png"),
    ])  # fmt: skip
    (root / "all.paths").write_text("pages.warc.zst\npictures.warc.gz\n")
    return Case(root / "all.paths", ["source=warc"], [
        ("髙い山①の写真", "alt", pictures[0]), ("Собака на траве", "alt", pictures[1]),
        ("responsive", "alt", pictures[2]), ("picture", "alt", pictures[3]),
        ("From the caption", "figcaption", pictures[4]), ("From the title", "title", pictures[5]),
        ("From the label", "aria-label", pictures[6]), ("inline", "alt", pictures[7]),
        ("not crawled", "alt", None), ("", None, pictures[4]),
    ], {"not crawled": "not in archive"})  # fmt: skip


def wat_of_the_web(root, pictures, web):
    links = [
        {"path": "A@/href", "url": "/somewhere", "text": "a link"},
        {"path": "IMG@/src", "url": "/0", "alt": "null &amp; nichts"},
        {"path": "IMG@/src", "url": web.url("/1"), "title": "eins"},
        {"path": "IMG@/src", "url": "/404", "alt": "gone"},
    ]
    location = write_archive(root / "a.wat.gz", [wat(web.url("/page"), links)])
    return Case(location, ["source=warc", "images_from=web"], [
        ("null & nichts", "alt", pictures[0]), ("eins", "title", pictures[1]), ("gone", "alt", None),
    ], {"gone": "HTTP 404"})  # fmt: skip


def url_table(kind):
    """Tables as they are published; nobody has to name their columns."""

    def build(root, pictures, web):
        urls, texts = [web.url(f"/{number}") for number in range(3)], ['say "hi', "two, and a half", "drei 𝟛"]
        if kind == "laion.parquet":
            pq.write_table(pa.table({"SAMPLE_ID": [1, 2, 3], "URL": urls, "TEXT": texts}), root / kind)
        else:
            lines = "".join(f"{url}\t{text}\n" for url, text in zip(urls, texts, strict=True))
            (root / kind).write_bytes(gzip.compress(lines.encode()))
        source = "TEXT" if kind == "laion.parquet" else "caption"
        pairs = [(text, source, picture) for text, picture in zip(texts, pictures[:3], strict=True)]
        return Case(root / kind, ["source=url_table", "images_from=web"], pairs)

    build.__name__ = kind
    return build


def img2dataset(root, pictures, web):
    tar(root / "00000.tar", {"000000000.jpg": pictures[0], "000000000.txt": b"null", "000000002.jpg": pictures[2]})
    rows = {
        "url": ["http://x/0", "http://x/1", "http://x/2"], "caption": ["null", "eins", None],
        "key": ["000000000", "000000001", "000000002"], "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "HTTP Error 410: Gone", None], "width": [1, None, 1], "sha256": [None, None, None],
    }  # fmt: skip
    pq.write_table(pa.table(rows), root / "00000.parquet")
    (root / "00000_stats.json").write_text("{}")
    pairs = [("null", "caption", pictures[0]), ("eins", "caption", None), ("", None, pictures[2])]
    return Case(root, ["source=shards"], pairs, {"eins": "HTTP Error 410: Gone"})


def webdataset(root, pictures, web):
    for number in range(2):
        tar(root / f"cc3m-{number:04d}.tar", {
            f"{number}a.jpg": pictures[2 * number], f"{number}a.txt": b"text %d" % number,
            f"{number}b.json": json.dumps({"caption": f"json {number}"}).encode(),
            f"{number}b.png": pictures[2 * number + 1],
        })  # fmt: skip
    return Case(root / "cc3m-*.tar", ["source=shards"], [
        ("text 0", "txt", pictures[0]), ("json 0", "caption", pictures[1]),
        ("text 1", "txt", pictures[2]), ("json 1", "caption", pictures[3]),
    ])  # fmt: skip


def coco_captions(root, pictures, web):
    for folder in ("annotations", "train2017"):
        (root / folder).mkdir()
    names = [f"{number:012d}.jpg" for number in range(2)]
    for name, picture in zip(names, pictures, strict=False):
        (root / "train2017" / name).write_bytes(picture)
    images = [
        {"id": number, "file_name": name, "coco_url": f"http://images.example/train2017/{name}"}
        for number, name in enumerate(names)
    ]
    annotations = [{"id": 9, "image_id": 1, "caption": "eins"}, {"id": 8, "image_id": 0, "caption": "null"},
                   {"id": 7, "image_id": 1, "caption": "one"}]  # fmt: skip
    values = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (root / "annotations/captions_train2017.json").write_text(json.dumps(values))
    return Case(root, ["source=coco"], [
        ("null", "caption", pictures[0]), ("eins", "caption", pictures[1]), ("one", "caption", pictures[1]),
    ])  # fmt: skip


def photographs(root, pictures, web):
    (root / "images").mkdir()
    for name, data in zip("012", pictures, strict=False):
        (root / f"images/{name}.jpg").write_bytes(data)
    (root / "images/2.txt").write_text("zwei")
    texts = {"0.jpg": ["null", "zero"], "images/1.jpg": ["eins"], "../secret.jpg": ["outside"], "3.jpg": ["gone"]}
    rows = [{"file": file, "texts": of_file} for file, of_file in texts.items()]
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Case(root, ["source=folder"], [
        ("null", "texts", pictures[0]), ("zero", "texts", pictures[0]), ("eins", "texts", pictures[1]),
        ("outside", "texts", None), ("gone", "texts", None), ("zwei", "txt", pictures[2]),
    ], {"outside": "outside the folder", "gone": "no such file"})  # fmt: skip


TABLES = [*map(url_table, ("laion.parquet", "cc12m.tsv.gz"))]
BUILDERS = [warc, wat_of_the_web, *TABLES, img2dataset, webdataset, coco_captions, photographs]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_source(build, tmp_path, pictures, web):
    (tmp_path / "source").mkdir()
    case = build(tmp_path / "source", pictures, web)
    source = source_at(case.location, *case.overrides)
    candidates, responses = rows_of(source)
    assert [(row["text"], row["text_source"]) for row in candidates] == [pair[:2] for pair in case.pairs]
    for row, (text, _, picture) in zip(candidates, case.pairs, strict=True):
        data = row["inline"] or (source.read(row["file"], row["offset"]) if row["file"] else None)
        assert data == picture or (data is None and not row["problem"]) or text in case.problems, text
    for row in responses:
        assert source.read(row["file"], row["offset"]) is not None
    assert _ingested(case, tmp_path) == {
        (text, where, hashlib.sha256(picture).hexdigest() if picture else case.problems[text])
        for text, where, picture in case.pairs
    }


def _ingested(case, root):
    """The result of `align ingest`: each text, its source, and the picture's digest or the error."""
    values = ("download.num_retries=0", "ingest.skip_hopeless=false", *(f"ingest.{value}" for value in case.overrides))
    rows = ingested(root, case.location, *values)
    assert len(rows) == len(case.pairs)
    return {(row["caption"], row["text_source"], row["sha256"] or row["error_message"]) for row in rows}


def test_sources_in_s3_are_those_of_a_folder(tmp_path, pictures, web, monkeypatch):
    with serve(tmp_path / "server") as server:
        server.use(monkeypatch)
        for build in (warc, img2dataset, webdataset, *TABLES, coco_captions, photographs):
            folder = tmp_path / build.__name__
            folder.mkdir()
            case = build(folder, pictures, web)
            bucket = build.__name__.replace("_", "-").replace(".", "-")
            with closing(server._client()) as s3:
                s3.create_bucket(Bucket=bucket)
                for file in folder.rglob("*"):
                    if file.is_file():
                        s3.put_object(Bucket=bucket, Key=str(file.relative_to(folder)), Body=file.read_bytes())
            location = f"s3://{bucket}/{case.location.relative_to(folder)}".removesuffix("/.")
            assert _rows(source_at(location, *case.overrides)) == _rows(source_at(case.location, *case.overrides))
            if build in (warc, coco_captions):  # the whole stage, too: worker processes, stamps, pictures by range
                there = _ingested(replace(case, location=location), tmp_path / f"{bucket}-s3")
                assert there == _ingested(case, tmp_path / f"{bucket}-here")


def test_sources_on_a_web_server_are_those_of_a_folder(tmp_path, pictures, web):
    with WebServer() as server:
        for number, build in enumerate((warc, img2dataset, webdataset, *TABLES, coco_captions)):
            folder = tmp_path / str(number)
            folder.mkdir()
            case = build(folder, pictures, web)
            for file in folder.rglob("*"):
                if file.is_file():
                    server.routes[f"/{number}/{quote(str(file.relative_to(folder)))}"] = ranges(file.read_bytes())
            local = source_at(case.location, *case.overrides)
            names = [str(Path(file).relative_to(folder)) for file in local.files]
            (tmp_path / f"{number}.paths").write_text("\n".join(names))
            root = (f"paths_root={server.url(f'/{number}/')}", "download.allow_networks=[127.0.0.0/8]")
            assert _rows(source_at(tmp_path / f"{number}.paths", *case.overrides, *root)) == _rows(local)


def test_a_worker_asks_a_host_once_for_robots_txt_over_all_shards(tmp_path, pictures):
    with WebServer() as server:
        for number, picture in enumerate(pictures):
            server.routes[f"/{number}"] = answer(picture)
        table = tmp_path / "table.csv"
        table.write_text("url,caption\n" + "".join(f"{server.url(f'/{n}')},{n}\n" for n in range(len(pictures))))
        case = Case(table, ["source=url_table", "images_from=web", "shard_size=3"], [
            (str(number), "caption", picture) for number, picture in enumerate(pictures)
        ])  # fmt: skip
        assert len(_ingested(case, tmp_path)) == len(pictures)
        assert len(raw_shards(tmp_path / "raw")) > 2
        assert server.count("/robots.txt") == 1


def _rows(source):
    """What candidates and responses say, with their bytes, wherever the source lies."""

    def read(row):
        data = row["file"] and source.read(row["file"], row["offset"])
        return row["url"].rpartition("/")[2], row.get("text"), row.get("text_source"), row.get("problem"), data

    return [list(map(read, rows)) for rows in rows_of(source)]


#: Every so many pages of the sample. All with a charset other than UTF-8 are taken.
_EVERY = 20
VALUES = ("ingest.images_from=archive",)


@pytest.fixture(scope="module")
def responses(sample):
    """Some pages of the sample and their pictures."""
    stored = stored_responses(sample / "archive.warc.gz")
    pages = [one for one in stored.values() if one.is_page]
    pages = [one for at, one in enumerate(pages) if at % _EVERY == 0 or "utf-8" not in one.content_type]
    chosen = {one.url for one in pages}
    candidates, _ = rows_of(source_at(sample / "archive.warc.gz"))
    pictures = dict.fromkeys(row["url"] for row in candidates if row["page_url"] in chosen and row["url"] in stored)
    assert len(pages) > 2 * len(ODDITIES)
    assert len(pictures) > 2 * len(ODDITIES)
    return [*pages, *(stored[url] for url in pictures if url not in chosen)]


def test_each_oddity_beside_a_clean_archive(tmp_path, responses, capsys):
    clean = clean_archive(tmp_path / "archives/clean", responses)
    odd = odd_archive(tmp_path / "archives/odd", responses)
    ingested(tmp_path / "odd", odd.folder, *VALUES, code=1)
    assert "cut off or damaged at byte" in capsys.readouterr().err
    pairs, report = {}, {}
    for archive in (clean, odd):
        name = archive.folder.name
        pairs[name] = _pairs(ingested(tmp_path / name, archive.folder, *VALUES, "ingest.max_damaged_share=1"))
        report[name] = json.loads((tmp_path / name / "reports/ingest/report.json").read_bytes())
    assert pairs["odd"] == pairs["clean"]
    assert sum(picture != "" for *_, picture in pairs["clean"]) > 0.9 * len(pairs["clean"]) > 100

    for archive in (clean, odd):
        of_archive = report[archive.folder.name]
        assert sum(of_archive["outcomes"].values()) + of_archive["num_other_records"] == archive.num_records
        counts = Counter(of_archive["counts"])
        assert counts["pages_coding_absent"] == archive.num_absent
        assert counts["pages_coding_unknown"] == archive.num_unknown
        assert counts["bytes_lost"] == archive.num_bytes_lost
    assert report["odd"]["outcomes"] == report["clean"]["outcomes"]
    assert len(report["odd"]["files_damaged"]) == 2
    num_pages = sum(one.is_page for one in responses)
    assert report["odd"]["outcomes"] == {
        "page": num_pages, "image": len(responses) - num_pages, "redirect": 1, "error_status": 1, "other_type": 1,
    }  # fmt: skip


def _pairs(rows):
    """Address, caption, page and the picture's digest of every pair."""
    return sorted(tuple(row[name] or "" for name in ("url", "caption", "page_url", "sha256")) for row in rows)
