"""Which objects of DVC's cache and of a remote a purge removes, and in which order: over stores made by hand."""

import hashlib
import io
import json
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from align.config.paths import PathsConfig
from align.formats.policy import Entry, OptedOut
from align.lineage.take_down.look_into import INDEX, Wanted, look_into
from align.lineage.take_down.opted_out_pairs import opted_out_pairs
from align.lineage.take_down.search import lists_of, search, still_there, what_is_wanted
from tests.support import indexed
from tests.support.params import load_params
from tests.support.small_data import RAW_SCHEMA

A, B = "a" * 64, "b" * 64
TEXT, MASKED = "write to ann@example.org", "write to a••@•••••••.•••"
PAGE, PLOT = b'<!doctype html><img src="data:image/jpeg;base64,AAAA">', b"<!doctype html><svg/>"


def table(columns, schema=None):
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns), schema=schema), buffer)
    return buffer.getvalue()


def raw(url, sha256, text="a fox"):
    """A table of data/raw with one pair."""
    row = {"url": url, "caption": text, "key": "000000000", "status": "success", "sha256": sha256}
    row |= {"image_key": "000000000", "page_url": "https://page.org/"}
    return table({name: [row.get(name)] for name in RAW_SCHEMA.names}, RAW_SCHEMA)


def decisions(image_id, text):
    return table({"key": ["0"], "keep": [True], "image_id": [image_id], "text": [text]})


class Store:
    """A cache in a folder, with the methods of `ObjectStore`."""

    def __init__(self, name, folder):
        self.name, self._folder, self._lists = name, folder, {}
        folder.mkdir()

    def put(self, data):
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        (self._folder / md5).write_bytes(data)
        return md5

    def out(self, files):
        """Stores a folder; returns the md5 of its list."""
        md5s = {name: self.put(data) for name, data in files.items()}
        md5 = self.put(json.dumps(md5s).encode())
        (self._folder / md5).unlink()
        self._lists[f"{md5}.dir"] = md5s
        return f"{md5}.dir"

    def all(self):
        return {path.name for path in self._folder.iterdir()} | self._lists.keys()

    @contextmanager
    def local(self, md5):
        yield self._folder / md5

    def files_of(self, md5):
        return self._lists[md5]

    def delete(self, md5):
        (self._folder / md5).unlink()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/raw").mkdir(parents=True)
    return Store("cache", tmp_path / "cache")


def found(tmp_path, *stores, entry=("image_id", A), again=False):
    opted_out = OptedOut([Entry(entry[0], entry[1], "", "2026-01-02")])
    pairs = opted_out_pairs(tmp_path / "data/raw", opted_out)
    lists = lists_of(stores)
    wanted = what_is_wanted(pairs, Wanted(opted_out), stores, lists)
    return search(tmp_path, load_params().section(PathsConfig), wanted, stores, lists, pending=again, again=again)


def lock(root, **stages):
    """dvc.lock with stage -> (deps, outs), each path -> md5."""
    listed = {
        name: {kind: [{"path": path, "md5": md5} for path, md5 in one.items()]
               for kind, one in zip(("deps", "outs"), both, strict=True)}
        for name, both in stages.items()
    }  # fmt: skip
    with (root / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": listed}, file)


def test_only_what_shows_it_goes_whoever_names_it(store, tmp_path):
    shown, other = raw("https://img.org/a.jpg", A), raw("https://img.org/b.jpg", B)
    store.out({"00000.parquet": shown, "00001.parquet": other, "manifest.json": b"{}"})
    unnamed = store.put(raw("https://img.org/c.jpg", A, "a third"))
    assert set(found(tmp_path, store).here["cache"]) == {store.put(shown), unnamed}


def test_what_is_damaged_goes(store, tmp_path):
    damaged = {store.put(b"PAR1 and no more"), store.put(bytes(257) + b"ustar" + bytes(300))}
    for harmless in (b"{ no json", b""):
        store.put(harmless)
    assert set(found(tmp_path, store).here["cache"]) == damaged


def test_texts_of_older_versions_are_looked_for_and_tables_go_last(store, tmp_path):
    (tmp_path / "data/raw/00000.parquet").write_bytes(raw("https://img.org/b.jpg", B))
    far = Store("far", tmp_path / "far")
    older = far.put(raw("https://gone.org/a.jpg", A, TEXT))
    filtered, others = store.put(decisions(A, TEXT)), store.put(decisions(B, TEXT))
    far.put(decisions(A, TEXT))
    result = found(tmp_path, store, far, entry=("host", "gone.org"))
    assert (result.wanted.image_ids, result.wanted.texts) == ({A}, {(A, TEXT)})
    assert result.ordered("cache") == [filtered] and others in result.searched
    assert result.ordered("far") == [filtered, older]


def test_an_index_is_looked_into(tmp_path):
    addresses = {"page_urls": [["https://a.example/page"], ["", ""]], "urls": [[""], ["https://b.example/1.jpg", ""]]}
    indexed.write(tmp_path, 2, image_id=[A, B], texts=[["one"], ["two", "three"]], **addresses)
    items = tmp_path / "items.parquet"
    assert look_into(items, Wanted(OptedOut(), frozenset({B}))) == INDEX
    for entry, shows in (
        (("host", "b.example"), INDEX), (("url", "https://a.example/page"), INDEX), (("host", "other.example"), ""),
    ):  # fmt: skip
        assert look_into(items, Wanted(OptedOut([Entry(entry[0], entry[1], "", "")]))) == shows


def test_an_index_goes_whole(store, tmp_path):
    def index(image_id):
        items = indexed.write(tmp_path / image_id[:2], 1, image_id=[image_id]) / "items.parquet"
        return {"items.parquet": items.read_bytes(), "thumbnails.jpegs": b"\xff\xd8\xff" + image_id.encode()}

    gone, stays = index(A), index(B)
    for files in (gone, stays):
        store.out(files)
    lock(tmp_path, index=({}, {"data/index": store.out(stays)}))
    assert set(found(tmp_path, store).here["cache"]) == {store.put(data) for data in gone.values()}


def test_of_reports_go_quotations_and_the_pages_of_what_was_made_of_it(store, tmp_path):
    shown = store.out({"00000.parquet": raw("https://img.org/a.jpg", A, TEXT)})
    clean = store.out({"00000.parquet": raw("https://img.org/b.jpg", B)})
    quoting = json.dumps({"longest": [{"text": MASKED}]}).encode()
    dirty = {"report.json": quoting, "metrics.json": b"{}", "report.html": PAGE, "curve.html": PLOT}
    dirty["m.jpg"] = b"\xff\xd8\xff"
    of_clean = {"report.html": PAGE + b"clean"}
    ingest = {"report.html": PAGE + b"of ingest", "report.json": quoting + b" "}
    outs = {"reports/filter": store.out(dirty)}
    lock(
        tmp_path, ingest=({}, {"data/raw": shown, "reports/ingest": store.out(ingest)}),
        filter=({"data/raw": shown}, outs), shard=({"data/raw": clean}, {"reports/shard": store.out(of_clean)}),
    )  # fmt: skip
    unnamed = store.put(PAGE + b"of nobody")
    result = found(tmp_path, store)
    gone = {store.put(dirty[name]) for name in ("report.json", "report.html", "m.jpg")}
    assert set(result.here["cache"]) == gone | {store.put(raw("https://img.org/a.jpg", A, TEXT)), unnamed}
    assert "reports/shard" in result.clean_reports and "reports/filter" not in result.clean_reports
    assert found(tmp_path, store, entry=("image_id", "c" * 64)).here["cache"] == {}
    for md5 in gone | {store.put(raw("https://img.org/a.jpg", A, TEXT))}:
        store.delete(md5)
    far = Store("far", tmp_path / "far")  # a remote that was unreachable before, with reports alone
    far.put(PAGE)
    assert set(found(tmp_path, store, far, again=True).here["far"]) == {store.put(PAGE)}


def test_it_is_proved_that_nothing_is_left(store, tmp_path):
    md5 = store.put(raw("https://img.org/a.jpg", A))
    result = found(tmp_path, store)
    assert still_there(result, store) == [md5]
    store.delete(md5)
    assert still_there(result, store) == []
    new = store.put(raw("https://other.org/a.jpg", A, "new"))
    assert still_there(result, store) == [new]
