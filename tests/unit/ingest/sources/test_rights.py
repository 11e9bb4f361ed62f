"""What pages and responses say of rights: where it is found, what hostile ones may do, and what obeys it."""

import json

import pyarrow.parquet as pq
import pytest

from align.ingest.sources.archives.http_head import parse_head
from align.ingest.sources.pages import page_images
from align.ingest.sources.rights import MAX_CHARACTERS, Rights
from tests.support.reading import ingested, rows_of, source_at
from tests.support.warc_records import page, picture, record, response, wat, write_archive

BY, BY_SA = "https://creativecommons.org/licenses/by/4.0/", "https://creativecommons.org/licenses/by-sa/3.0/de/"


@pytest.mark.parametrize(("html", "rights"), [
    ("a license is mentioned", Rights()),
    ('<meta name="ROBOTS" content="index, NoAI , noimageai">', Rights(None, "noai")),
    ('<meta name=robots content="otherbot: noimageai, noindex">', Rights()),
    ('<meta name=robots content="noarchive, NoML">', Rights(None, "noml")),
    ("<meta name=description content=noai>", Rights()),
    ("<meta name=tdm-reservation content=' 1'>", Rights(None, "tdm-reservation")),
    ("<meta name=tdm-reservation content=0>", Rights()),
    ("<a rel='license nofollow' href=//www.CreativeCommons.org/licenses/BY/4.0/deed.de>CC</a>", Rights(BY)),
    ("<p><a href=http://creativecommons.org/licenses/by-sa/3.0/de/legalcode>", Rights(BY_SA)),
    ("<a href=https://creativecommons.org/publicdomain/zero/1.0>",
     Rights("https://creativecommons.org/publicdomain/zero/1.0/")),
    ("<a href=https://creativecommons.org/about/>license", Rights()),
    ("<link rel=license href=/terms#use>", Rights("http://x/terms")),
    (f"<a rel=license href={BY}><a href={BY_SA}>", Rights(BY)),  # what is called the licence comes first
    (f"<a href={BY}><a href={BY}deed.fr>", Rights(BY)),  # in one spelling
    (f"<a href={BY}><a href={BY_SA}>", Rights()),  # nobody knows whose is whose
    ("<a rel=license href='javascript:alert(1)'><a rel=license href='data:,x'>", Rights()),
    (f"<a rel=license href=/{'x' * MAX_CHARACTERS}>", Rights()),
    ("<a rel=license href=https://evil.example/creativecommons.org/licenses/by/4.0/>",
     Rights("https://evil.example/creativecommons.org/licenses/by/4.0/")),
])  # fmt: skip
def test_what_a_page_says(html, rights):
    images, found = page_images(f"<head>{html}</head><img src=a.png alt=A>".encode(), "http://x/p", None, ["alt"])
    assert (found, len(images)) == (rights, 1)


def test_a_wat_says_the_same_as_its_page(tmp_path):
    links = [{"path": "IMG@/src", "url": "/i.png", "alt": "i"}, {"path": "A@/href", "url": BY, "rel": "license"}]
    one = wat("http://y/", links).replace(b'"Title":"A page"', b'"Metas":[3,{},{"name":"robots","content":"noai"}]')
    body = one.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n\r\n")
    both = (record("metadata", "http://y/", text, "application/json") for text in (body, body.replace(b"3,", b"")))
    (row,), _ = rows_of(source_at(write_archive(tmp_path / "a.wat.gz", both)))  # the first one is unreadable
    assert (row["licence"], row["reservation"]) == (BY, "noai")


def test_headers_of_one_name():
    head = parse_head(b"HTTP/1.1 200 OK\r\nX-Robots-Tag: a\r\nx-robots-tag: b\r\n\r\n")
    assert (head.all("X-Robots-Tag"), head.get("X-Robots-Tag"), head.all("Other")) == (["a", "b"], "a", [])


def archive(folder, *, says_nothing=False):
    image, text = picture(300, 250), "<img src={}.png alt='a long text of {}'>"
    said = {
        "meta": page("http://x/meta/", "<meta name=robots content=noai>" + text.format("a", "meta")),
        "head": page("http://x/head/", text.format("b", "head"), headers="tdm-reservation: 1\r\n"),
        "noindex": page("http://x/noindex/", text.format("c", "noindex"), headers="X-Robots-Tag: noindex\r\n"),
        "usage": page("http://x/usage/", text.format("d", "usage"), headers="Content-Usage: search=y, train-ai=n\r\n"),
        "picture": page("http://x/picture/", text.format("e", "picture")),
        "licence": page("http://x/licence/", f"<a rel=license href={BY}>" + text.format("f", "licence")),
        "none": page("http://x/none/", text.format("g", "none")),
    }  # fmt: skip
    tags = {"picture": "X-Robots-Tag: noimageindex\r\n"}
    records = list(said.values()) if not says_nothing else [said["none"]]
    for letter, name in zip("abcdefg", said, strict=True):
        url = f"http://x/{name}/{letter}.png"
        headers = "" if says_nothing else tags.get(name, "")
        records.append(response(url, image + name.encode(), "image/png", headers=headers))
    return write_archive(folder / "a.warc.gz", records)


def test_what_is_reserved_is_a_row_without_text_or_picture(tmp_path):
    rows = {row["page_url"].split("/")[-2]: row for row in ingested(tmp_path, archive(tmp_path))}
    assert {name: row["error_message"] for name, row in rows.items() if row["status"] != "success"} == {
        "meta": "reserved: noai", "head": "reserved: tdm-reservation",
        "picture": "reserved: noimageindex", "usage": "reserved: content-usage",
    }  # fmt: skip
    assert {row["caption"] for row in rows.values() if row["status"] != "success"} == {""}
    assert {name: row["licence"] for name, row in rows.items() if row["licence"]} == {"licence": BY}
    report = json.loads((tmp_path / "reports/ingest/report.json").read_bytes())
    assert (report["errors"], report["licences"]) == ({"reserved": 4}, {BY: 1})
    assert BY in (tmp_path / "reports/ingest/report.html").read_text()


def test_what_is_reserved_is_kept_beside_the_pair_where_it_is_not_obeyed(tmp_path):
    rows = ingested(tmp_path, archive(tmp_path), "download.obey_robots=false")
    assert {row["status"] for row in rows} == {"success"}
    assert sorted(row["reservation"] or "" for row in rows) == [
        "", "", "", "content-usage", "noai", "noimageindex", "tdm-reservation",
    ]  # fmt: skip
    again = ingested(tmp_path / "again", tmp_path / "raw", "ingest.source=shards", "download.obey_robots=false")
    assert [(row["licence"], row["reservation"]) for row in again] == [
        (row["licence"], row["reservation"]) for row in rows
    ]


def test_where_no_page_says_anything_tables_have_no_such_columns(tmp_path):
    (row,) = ingested(tmp_path, archive(tmp_path, says_nothing=True))
    assert (row["licence"], row["reservation"]) == (None, None)
    assert "licence" not in pq.read_schema(tmp_path / "raw/00000.parquet").names
    assert "licences" not in json.loads((tmp_path / "reports/ingest/report.json").read_bytes())
