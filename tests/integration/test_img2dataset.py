"""A folder of img2dataset gives equal decisions by `paths.raw` and by `ingest.source: shards`, or one true line."""

import hashlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.errors import DataError
from align.filter.filter import FilterFolders, filter_pairs
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import raw_shards, read_table
from align.ingest.ingest import Resources, ingest
from align.pairs.urls import canonical_or_as_is
from tests.support.img2dataset_folder import Options, Row, plain, run_img2dataset, scenario, write_folder
from tests.support.params import load_params
from tests.support.peers import tools
from tests.support.pictures import blurred_png
from tests.support.reading import raw_rows, rows_of, source_at
from tests.support.small_filter import quicken
from tests.support.web_server import WebServer, response

_PARAMS = load_params(overrides=["engine.num_workers=1", "engine.num_threads=2", "ingest.source=shards"])


def by_the_filter(folder, work, policy=None, **filter_values):
    """The decisions of `align filter` on a folder in img2dataset's layout, however it numbers its pairs:
    address, text, whether it is kept, and all reasons why it is not.
    """
    config = _PARAMS.section(FilterConfig).model_copy(update=filter_values)
    none = work / "none"
    none.mkdir(parents=True)
    folders = FilterFolders(folder, none, policy or none, work / "filtered", work / "reports/filter")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        filter_pairs(config, _PARAMS.section(EngineConfig), folders)
    urls = {
        row["key"]: canonical_or_as_is(row["url"])
        for shard in raw_shards(folder)
        for row in read_table(shard, ["key", "url"]).to_pylist()
    }
    rows = pq.read_table(work / "filtered/decisions").to_pylist()
    return Counter((urls[row["key"]], row["text"], row["keep"], tuple(row["reasons"])) for row in rows)


def ingested(folder, raw, policy=None, **ingest_values):
    """data/raw of such a folder by `ingest.source: shards`."""
    config = _PARAMS.section(IngestConfig).model_copy(update=ingest_values)
    resources = Resources(_PARAMS.section(DownloadConfig), _PARAMS.section(EngineConfig), _PARAMS.section(StoreConfig))
    assert ingest(config, resources, archive=str(folder), raw=raw, policy=policy or raw.parent / "none") is not None
    return raw


def by_shards(folder, work, policy=None, **filter_values):
    """The decisions by `align ingest` with `source: shards`, then `align filter`."""
    work.mkdir(parents=True, exist_ok=True)
    return by_the_filter(ingested(folder, work / "raw", policy), work, policy, **filter_values)


READ = {
    "jpg": Options(),
    "webp": Options(encode_format="webp", resize_mode="keep_ratio", compute_hash=None),
    "png": Options(encode_format="png", resize_mode="no", compute_hash="md5"),
    "as it came": Options(disable_all_reencoding=True),
}
#: The other two differ in the coding of the pictures only, and in the hash that the table states.
QUICK = ("webp", "as it came")
REFUSED = ("parquet", "tfrecord", "dummy")
#: Too large, and no number at all; the other two are read by the same lines.
QUICK_SIZES = ("int64", "text")


@pytest.mark.parametrize(
    "options",
    [pytest.param(one, id=name, marks=[] if name in QUICK else pytest.mark.tools) for name, one in READ.items()],
)
def test_both_ways_decide_equally(tmp_path, options):
    rows = scenario()
    folder = write_folder(tmp_path / "made", rows, options)
    decided = by_the_filter(folder, tmp_path / "raw")
    assert by_shards(folder, tmp_path / "shards") == decided
    reasons = {(url.partition(":9")[2], text): reasons for url, text, _, reasons in decided}
    assert decided.total() == len(rows)
    assert sum(count for decision, count in decided.items() if decision[2]) == 17
    assert reasons["/p/1", "the same picture with other words"] == ()
    assert reasons["/small", "a drawing of something small"] == ("image_too_small",)
    assert reasons["/red-small", "a red picture of some size"] == ("image_too_small",)
    assert reasons["/red-large", "a red picture of another size"] == ()
    assert reasons["/wide", "a drawing of something wide"] == ("image_aspect_ratio",)
    assert reasons["/cut", "a drawing that is cut off"] == ("image_undecodable",)
    assert reasons["/missing/0", "a text of many"] == ("image_missing", "text_shared_by_many_images")
    assert reasons["/broken/0", "a text of many"] == ("image_undecodable", "text_shared_by_many_images")
    assert reasons["/missing", "a text of one"] == ("image_missing",)
    assert reasons["/p/5", "a text of many"] == ("text_shared_by_many_images",)


@pytest.mark.parametrize("encode_format", ["webp", pytest.param("jpg", marks=pytest.mark.tools)])
def test_files_are_read_by_shards_and_refused_by_name_as_raw(tmp_path, encode_format):
    rows = scenario()
    tars, files = (
        write_folder(tmp_path / name, rows, Options(name, encode_format)) for name in ("webdataset", "files")
    )
    assert by_shards(files, tmp_path / "by files") == by_shards(tars, tmp_path / "by tars")
    with pytest.raises(DataError, match=r"00000: img2dataset's output format 'files', .*ingest\."):
        raw_shards(files)
    (files / f"00000/0000001.{encode_format}").unlink()  # a success whose picture is gone is a row without one
    (files / f"00001/0000100.{encode_format}").unlink()
    (files / f"00001/0000100.{encode_format}").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(plain((300, 300), "red"))
    found, _ = rows_of(source_at(files, "source=shards"))
    without = [row["url"] for row in found if row["problem"] is None and row["file"] is None]
    assert without == ["http://127.0.0.1:9/p/1", "http://127.0.0.1:9/p/1"]
    with pytest.raises(DataError, match="no column 'caption'"):
        pq.write_table(pq.read_table(files / "00000.parquet").drop_columns("caption"), files / "00000.parquet")
        rows_of(source_at(files, "source=shards"))


@pytest.mark.parametrize("output_format", REFUSED)
def test_other_output_formats_are_refused_by_name(tmp_path, output_format):
    folder = write_folder(tmp_path / "made", scenario(), Options(output_format))
    says = rf"made.*: img2dataset's output format '{output_format}', which cannot be read here; make the folder again"
    with pytest.raises(DataError, match=says):
        raw_shards(folder)
    with pytest.raises(DataError, match=says):
        rows_of(source_at(folder, "source=shards"))


def test_a_missing_tar_is_named(tmp_path):
    folder = write_folder(tmp_path / "made", scenario(), Options())
    (folder / "00001.tar").unlink()
    says = r"00001\.tar: missing, while 00001\.parquet exists"
    with pytest.raises(DataError, match=says):
        raw_shards(folder)
    with pytest.raises(DataError, match=says):
        rows_of(source_at(folder, "source=shards"))
    (tmp_path / "made/metadata").mkdir()  # tables elsewhere are not img2dataset's
    (folder / "00001.parquet").rename(folder / "metadata/all.parquet")
    assert [Path(file).name for file in source_at(folder, "source=shards").files] == ["00000.tar", "00002.tar"]


def test_a_shard_whose_name_is_not_utf8_is_named(tmp_path):
    folder = write_folder(tmp_path / "made", scenario()[:3], Options())
    for path in list(folder.iterdir()):
        path.rename(folder / os.fsdecode(b"caf\xe9" + path.name.encode()))
    with pytest.raises(DataError, match=r"made/caf\\xe900000\.parquet: the name is not UTF-8"):
        raw_shards(folder)


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(pa.array(width), pa.array(height), id=name, marks=[] if name in QUICK_SIZES else pytest.mark.tools)
        for name, width, height in (
            ("int32", [-900, 0, None, 900, 201, 2**31 - 1], [900, 900, 900, None, 201, 300]),
            ("int64", [2**40, 900, -(2**40), 2**31, 900, 1], [900, 2**62, 900, 900, 900, 900]),
            ("float", [900.0, float("nan"), float("inf"), 1e300, 200.0, -1.0], [900.0] * 6),
            ("text", ["900", "", "x", None, "0", "-1"], [900] * 6),
        )
    ],
)
def test_stated_sizes_that_are_none(tmp_path, width, height):
    """A side of 0 or below, or beyond 32 bits, states nothing: the size of the bytes counts, both ways."""
    rows = [Row(f"/{n}", f"a drawing of thing {n} here", "/a", blurred_png(n, (240, 230))) for n in range(6)]
    folder = write_folder(tmp_path / "made", rows, Options(encode_format="png", resize_mode="no"))
    table = pq.read_table(folder / "00000.parquet").sort_by("key")
    for name, values in (("original_width", width), ("original_height", height)):
        if pa.types.is_int64(values.type) and all(abs(side or 0) < 2**31 for side in values.to_pylist()):
            values = values.cast(pa.int32())
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, folder / "00000.parquet")
    decided = by_the_filter(folder, tmp_path / "raw")
    assert by_shards(folder, tmp_path / "shards") == decided
    for shard in (*raw_shards(folder), *raw_shards(tmp_path / "shards/raw")):
        sizes = read_table(shard, ["original_width", "original_height"])
        assert all(side is None or side > 0 for column in sizes.columns for side in column.to_pylist())
    assert sum(reasons == ("image_too_small",) for *_, reasons in decided) <= 1


def test_a_stated_sha256_names_no_picture_but_a_take_down_obeys_it(tmp_path):
    rows = [Row(f"/{n}", f"a drawing of thing {n} here", "/a", blurred_png(n, (240, 230))) for n in range(6)]
    rows += [replace(rows[5], path="/5-again")]
    folder = write_folder(tmp_path / "made", rows, Options())
    table = pq.read_table(folder / "00000.parquet").sort_by("key")
    bodies = [hashlib.sha256(row.body or b"").hexdigest() for row in rows]
    lies = [bodies[0], bodies[1], *[bodies[2]] * 3, None, "no sha256"]  # three pictures that say they are one
    index = table.column_names.index("sha256")
    pq.write_table(table.set_column(index, "sha256", pa.array(lies)), folder / "00000.parquet")
    policy = tmp_path / "policy"
    policy.mkdir()
    write_opted_out(policy, OptedOut([Entry("image_id", bodies[1], "mine", "2026-01-01")]))
    decided = by_the_filter(folder, tmp_path / "raw", policy, max_texts_per_image=1)
    ways = [by_shards(folder, tmp_path / "shards", policy, max_texts_per_image=1), decided]
    reasons = [{url.rpartition("/")[2]: reasons for url, *_, reasons in way} for way in ways]
    assert (
        {name: first for name, first in reasons[0].items() if name != "1"}
        == {name: first for name, first in reasons[1].items() if name != "1"}
        == dict.fromkeys(["0", "2", "3", "4", "5", "5-again"], ())
    )
    assert [sorted(way["1"])[-1] for way in reasons] == ["text_too_short", "opted_out"]  # ingest takes no picture of it
    ids = pq.read_table(tmp_path / "raw/filtered/images.parquet")["image_id"].to_pylist()
    assert len(ids) == 6
    assert set(ids) >= {row["sha256"] for row in raw_rows(tmp_path / "shards/raw")} - {None}


def test_other_statuses_are_failures_and_pictures_of_one_address_stay_as_many_as_they_are(tmp_path):
    """A server may answer a second request with another picture; and the second may fail."""
    paths = ["/same"] * 3 + ["/null", "/odd"]
    rows = [Row(path, f"a drawing of thing {n} here", "/a", blurred_png(n, (240, 230))) for n, path in enumerate(paths)]
    rows.append(replace(rows[0], body=None, caption="a drawing that is gone"))
    folder = write_folder(tmp_path / "made", rows, Options(encode_format="png", resize_mode="no"))
    table = pq.read_table(folder / "00000.parquet").sort_by("key")
    statuses = pa.array(["success"] * 3 + [None, "odd", "failed_to_download"])
    pq.write_table(table.set_column(table.column_names.index("status"), "status", statuses), folder / "00000.parquet")
    decided = by_the_filter(folder, tmp_path / "raw", max_texts_per_image=1)
    assert by_shards(folder, tmp_path / "shards", max_texts_per_image=1) == decided
    assert sorted(reasons for *_, reasons in decided) == [()] * 3 + [("image_missing",)] * 3


@pytest.mark.tools
@pytest.mark.timeout(1200)  # installs img2dataset
@pytest.mark.parametrize("options", [*READ.values(), Options("files"), Options("parquet"), Options("dummy")], ids=str)
def test_with_img2dataset_itself(tmp_path, options):
    """And the writer of the other tests writes the same tables and names."""
    python = tools("peers")
    rows = scenario()
    with WebServer() as server:
        server.routes |= {row.path: response(row.body) for row in rows if row.body is not None}
        made = run_img2dataset(python, tmp_path / "made", rows, options, server.url(""))
        imitation = write_folder(tmp_path / "imitation", rows, options, server.url(""))
    names, imitated = ({str(path.relative_to(root)) for path in root.rglob("*")} for root in (made, imitation))
    assert names == imitated
    for path in sorted(made.glob("*.parquet")):
        assert _facts(path) == _facts(imitation / path.name)
    if options.output_format in REFUSED:
        with pytest.raises(DataError, match=f"output format '{options.output_format}'"):
            raw_shards(made)
        with pytest.raises(DataError, match=f"output format '{options.output_format}'"):
            rows_of(source_at(made, "source=shards"))
        return
    by_ingest = by_shards(made, tmp_path / "shards")
    assert by_ingest.total() == len(rows)
    assert sum(count for decision, count in by_ingest.items() if decision[2]) == 17
    if options.output_format == "webdataset":
        assert by_the_filter(made, tmp_path / "raw") == by_ingest


def _facts(path):
    """The columns of a table, and what it says of each key but for the pictures' bytes and sizes."""
    table = pq.read_table(path)
    names = ["key", "url", "caption", "page", "status", "original_width", "original_height"]
    names += [name for name in ("sha256", "md5") if name in table.column_names]
    rows = sorted(tuple(row[name] for name in names) for row in table.to_pylist())
    return table.schema.remove_metadata(), rows
