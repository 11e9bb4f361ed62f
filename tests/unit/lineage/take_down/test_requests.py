"""Take-downs of pairs by key: what is recorded covers these pictures, in every ingest, and no other one."""

import hashlib
from pathlib import Path

import pytest

from align.cli import main
from align.config.paths import PathsConfig
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.features import Features
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.ingest.writer import RawShardWriter, write_raw_manifest
from align.lineage.take_down.look_into import Wanted
from align.lineage.take_down.opt_out import remaining_lines
from align.lineage.take_down.requests import read_requests, without_pairs
from tests.support import colour_index, small_data
from tests.support.colour_index import write_raw
from tests.support.colour_shards import image_id
from tests.support.evaluation_sets import write_items
from tests.support.params import load_params
from tests.support.small_data import Pair, jpeg

A = jpeg(1)
SHA_A = hashlib.sha256(A).hexdigest()


def raw_folder(raw, *pairs):
    """(address or name, picture or None) as ingest writes them."""
    raw.mkdir(parents=True)
    with RawShardWriter(raw, "00000", 4, keep_tar=lambda tar, sha256: None) as writer:
        for url, image in pairs:
            key, size = writer.next_key, 260 if image else None
            row = {
                "url": url, "caption": "a text", "key": key, "status": "success" if image else "failed_to_download",
                "error_message": None if image else "no such file", "width": size, "height": size,
                "original_width": size, "original_height": size, "page_url": None, "retryable": False,
                "sha256": hashlib.sha256(image).hexdigest() if image else None, "text_source": "caption",
                "image_key": key if image else None,
            }  # fmt: skip
            writer.add(row, image)
    write_raw_manifest(raw, ["00000"])
    return raw


def recorded(raw, keys):
    (raw.parent / "keys").write_text(keys)
    return [(entry.kind, entry.value) for entry in read_requests({"keys": raw.parent / "keys"}, raw, "")]


@pytest.mark.parametrize("name", ["6.jpg", "a/6.jpg", "file:///photos/6.jpg", "//img.org", "http:6.jpg", "http://[x"])
def test_a_name_of_a_file_is_not_recorded_but_its_picture_is(tmp_path, name):
    raw = raw_folder(tmp_path / "raw", (name, A), ("https://img.org/6.jpg", A), ("https://img.org/7.jpg", None))
    assert recorded(raw, "000000000\n") == [("image_id", SHA_A)]
    assert recorded(raw, "000000001\n") == [("image_id", SHA_A), ("url", "https://img.org/6.jpg")]
    assert recorded(raw, "000000002\n") == [("url", "https://img.org/7.jpg")]


def test_a_pair_with_neither_address_nor_picture_cannot_be_recorded_by_its_key(tmp_path):
    raw = raw_folder(tmp_path / "raw", ("6.jpg", None))
    with pytest.raises(DataError) as refused:
        recorded(raw, "000000000\n")
    assert str(refused.value).endswith(
        "keys, line 1: '000000000': this pair has neither a web address nor a picture, by which later ingests would "
        "know it; to refuse every picture of its name, give the name with --urls"
    )


SHA = "ab" * 32
ADDRESSES = (
    ("http://img.org/a/1.jpg", "https://blog.org/post?id=7"), ("https://www.img.org//a/1.jpg?utm_source=x", None),
    ("https://img.org/a/2.jpg?size=2", "https://blog.org/post?id=7"), ("https://other.org/b/3.jpg", None),
)  # fmt: skip


@pytest.fixture
def raw(tmp_path):
    write_raw(tmp_path / "raw", [
        {"key": f"{number:09d}", "url": url, "page_url": page, "caption": "a", "sha256": f"{number:064x}"}
        for number, (url, page) in enumerate(ADDRESSES)
    ])  # fmt: skip
    return tmp_path / "raw"


def lines(raw, *entries):
    return list(without_pairs(raw, OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)))


ABSENT = "is no address of a pair or page here"


@pytest.mark.parametrize(("entry", "said"), [
    (("url", "https://img.org/a/1.jpg"), []),
    (("url", "https://img.org/a/2.jpg"), [ABSENT]),
    (("url", "https://cdn.net/"), [ABSENT]),
    (("url", "https://blog.org/post?id=7"), []),
    (("host", "img.org"), []),
    (("host", "a.img.org"), ["is the host of no pair or page here"]),
    (("image_id", SHA), []),
])  # fmt: skip
def test_an_entry_that_covers_nothing_is_named(raw, entry, said):
    assert lines(raw, entry) == [f"{entry[1]} {line}" for line in said]


def test_without_data_nothing_is_said_to_be_missed(tmp_path):
    (said,) = lines(tmp_path, ("url", "http://a.org/1.jpg"), ("host", "b.org"))
    assert said == f"{tmp_path} has no tables, so which pairs these entries cover is not known here"


def test_each_host_that_covers_something_is_known(raw):
    entries = [("url", "http://img.org/a/1.jpg"), ("url", ADDRESSES[1][0]), ("host", "www.img.org"), ("host", "org")]
    assert lines(raw, *entries) == []


def test_an_address_in_another_spelling_names_the_picture(raw):
    (raw.parent / "urls").write_text("HTTPS://IMG.org:443/a/./1.jpg?fbclid=3#top\n")
    recorded = {(one.kind, one.value) for one in read_requests({"urls": raw.parent / "urls"}, raw, "")}
    assert {("image_id", f"{0:064x}"), ("image_id", f"{1:064x}")} < recorded
    assert len(recorded) == 4


def test_copies_of_an_index_are_named_where_they_show_what_is_forgotten(tmp_path, monkeypatch):
    paths = load_params().section(PathsConfig)
    monkeypatch.chdir(tmp_path)
    colour_index.build(tmp_path / "data/sample/ready")

    def said(sha256, host):
        policy = OptedOut([Entry("host", host, "", "")])
        return "\n".join(remaining_lines(paths, [], Wanted(policy, frozenset({sha256}))))

    assert "data/sample/ready" not in said("another", "other.example") and ".align/served" not in said("a", "b.c")
    for sha256, host in ((image_id("000000003"), "other.example"), ("another", "example.com")):
        assert "data/sample/ready and git's history of it" in said(sha256, host)
    Path(".align/served").mkdir(parents=True)
    assert "ends with: `rm -rf .align/served`" in said("another", "other.example")
    (tmp_path / "data/sample/ready/index/items.parquet").write_bytes(b"PAR1")
    assert "data/sample/ready and git's history of it" in said("another", "other.example")  # damaged, so perhaps


B = jpeg(2)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Picture B is opted out; it is in no folder of data."""
    monkeypatch.setattr("align.lineage.take_down.opt_out.who_saw", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    small_data.write(tmp_path, [Pair("a red fox", 1)])
    write_opted_out(Path("data/policy"), OptedOut([Entry("image_id", hashlib.sha256(B).hexdigest(), "", "2026-01-02")]))
    return tmp_path


def test_measured_values_of_the_pictures_go(project, capsys):
    for name, data in (("a", A), ("b", B)):
        features = Features(Path(".align/features/views-1"), lambda value: value, lambda data: data)
        list(features.look(lambda images: images, [(name, data)]))
    assert main(["opt_out", "--purge"]) == 1
    assert "to go: 1 files of .align/features, with values measured of evaluation images" in capsys.readouterr().out
    assert main(["opt_out", "--purge", "--yes"]) == 0
    assert ".align/features: 1 files of measured values; `align filter` measures them" in capsys.readouterr().out
    assert [file.name for file in Path(".align/features").glob("*/*")] == [hashlib.sha256(A).hexdigest()]


def test_evaluation_sets_with_the_pictures_are_named(project, capsys):
    for name, images in (("mine", (A, B)), ("others", (A,))):
        items = [EvaluationImage(f"k{n}", f"c{n}", ("x",), None, "query") for n in range(len(images))]
        write_items(Path("data/sample/evaluation"), EvaluationSet(name, "retrieval", "x", items, (), (), held(images)))
    Path("data/sample/evaluation/broken.tar").write_bytes(b"no tar")
    assert main(["opt_out", "--purge", "--yes"]) == 0
    said = capsys.readouterr().out.splitlines()
    line = said.index("  data/sample/evaluation/mine.tar: 1 of the pictures, with their captions")
    assert said[line + 1] == "    ends with: removing them from what the set was made of, then making it again"
    assert "  data/sample/evaluation/broken.tar: cannot be read, so perhaps some of the pictures" in said
    assert not any("others.tar" in line for line in said)
    assert "  other sets in data/sample/evaluation: copies in another size are not recognised" in said
