"""Take-downs in one checkout: what is recorded, what matches, and what remains in data/raw after a purge."""

import fcntl
import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.config.infrastructure import StoreConfig
from align.errors import DataError
from align.formats.policy import Entry, OptedOut, read_opted_out, write_opted_out
from align.formats.raw import iter_images, kept_scan, raw_shards, read_table
from align.ingest.writer import RawShardWriter, write_raw_manifest
from align.lineage.take_down.opted_out_pairs import opted_out_pairs
from align.lineage.take_down.purge_raw import purge_raw, stored_tars
from align.lineage.take_down.requests import read_requests
from align.lineage.versions.who_saw import SeenBy
from align.services.git import git
from align.services.s3.store import fetcher, keep_tar
from align.services.tracking.registry import Version
from tests.support import small_data
from tests.support.params import load_params
from tests.support.small_data import Pair, jpeg

A, B, C = (jpeg(seed) for seed in (1, 2, 3))
SHA_A, SHA_B, SHA_C = (hashlib.sha256(data).hexdigest() for data in (A, B, C))


def row(key, url, page, image, holder):
    stored = image is not None
    size = 260 if stored else None
    return {
        "url": url, "caption": f"text of {key}", "key": key, "status": "success" if stored else "failed_to_download",
        "error_message": None if stored else "HTTP 404", "width": size, "height": size, "original_width": size,
        "original_height": size, "sha256": hashlib.sha256(image).hexdigest() if image else None, "page_url": page,
        "image_key": holder, "text_source": "alt", "retryable": not stored,
    }  # fmt: skip


@pytest.fixture
def raw(tmp_path):
    """Three shards as ingest writes them: A on two pages, B of another host, a dead link; C alone in the third."""
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    shards = {
        "00000": [
            ("https://img.org/a.jpg", "https://one.org/", A, 0), ("https://img.org/a.jpg", "https://two.org/", A, 0),
        ],
        "00001": [
            ("https://sub.host.org/b.jpg", "https://two.org/", B, 0), ("https://x.org/", "https://y.org/", None, 0),
        ],
        "00002": [("https://img.org/c.jpg", "https://three.org/", C, 0)],
    }  # fmt: skip
    for name, rows in shards.items():
        with RawShardWriter(raw, name, 4, keep_tar=lambda tar, sha256: None) as writer:
            for index, (url, page, image, holder) in enumerate(rows):
                key = writer.next_key
                at = f"{name}{holder:04d}" if image else None
                writer.add(row(key, url, page, image, at), image if index == holder else None)
    write_raw_manifest(raw, list(shards))
    return raw


def policy(*entries):
    return OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def members(tar):
    with tarfile.open(tar) as opened:
        return opened.getnames()


def test_what_is_affected(raw):
    page = opted_out_pairs(raw, policy(("url", "https://one.org/")))
    assert (page.num_pairs, page.num_held, page.gone, page.shared) == (1, 1, frozenset(), frozenset({"000000000"}))
    picture = opted_out_pairs(raw, policy(("image_id", SHA_A)))
    assert (picture.num_pairs, picture.gone, picture.shared) == (2, frozenset({"000000000"}), frozenset())
    assert picture.image_ids == {SHA_A}
    host = opted_out_pairs(raw, policy(("host", "host.org"), ("host", "x.org"), ("host", "nobody.org")))
    assert (host.num_pairs, host.num_held, host.gone, host.shards) == (2, 1, {"000010000"}, {"00001"})


def test_a_purge_removes_the_picture_and_the_texts_and_nothing_else(raw):
    before = contents(raw)
    opted_out = policy(("image_id", SHA_B), ("url", "https://x.org/"))
    kept_scan(raw).mkdir()  # it has the texts
    assert purge_raw(raw, opted_out, opted_out_pairs(raw, opted_out)) == ["00001"]
    assert not kept_scan(raw).exists()
    after = contents(raw)
    assert {name for name in before if before[name] != after[name]} == {
        "00001.tar", "00001.parquet", "00001_stats.json", "manifest.json",
    }  # fmt: skip
    assert not any(B in data for data in after.values())
    assert members(raw / "00001.tar") == []
    rows = read_table(raw_shards(raw)[1]).to_pylist()
    for one in rows:
        assert (one["status"], one["error_message"]) == ("failed_to_download", "opted out")
        assert (one["image_key"], one["width"], one["retryable"], one["caption"]) == (None, None, False, "")
    assert [one["sha256"] for one in rows] == [SHA_B, None]  # the hash still names the forgotten picture
    assert [one["key"] for one in rows] == ["000010000", "000010001"]
    stats = json.loads(after["00001_stats.json"])
    assert (stats["count"], stats["successes"], stats["failed_to_download"], stats["not_fetched"]) == (2, 0, 2, 0)
    assert stats["status_dict"] == {"opted out": 2}
    manifest = json.loads(after["manifest.json"])
    for shard in manifest["shards"]:
        assert shard["tar_sha256"] == hashlib.sha256(after[f"{shard['name']}.tar"]).hexdigest()
        assert shard["table_sha256"] == hashlib.sha256(after[f"{shard['name']}.parquet"]).hexdigest()
    assert manifest["digest"] != json.loads(before["manifest.json"])["digest"]
    again = opted_out_pairs(raw, opted_out)
    assert (again.num_pairs, again.num_held, again.to_purge) == (2, 0, False)
    assert purge_raw(raw, opted_out, again) == ["00001"]
    assert contents(raw) == after  # idempotent


def test_a_folder_that_a_person_put_there_stays(raw):
    (raw / "mine/deep").mkdir(parents=True)
    (raw / "mine/deep/notes.txt").write_text("the only copy")
    opted_out = policy(("image_id", SHA_B))
    purge_raw(raw, opted_out, opted_out_pairs(raw, opted_out))
    assert (raw / "mine/deep/notes.txt").read_text() == "the only copy"


def test_a_picture_that_another_page_shows_stays_with_that_pages_words(raw):
    opted_out = policy(("url", "https://one.org/"))
    purge_raw(raw, opted_out, opted_out_pairs(raw, opted_out))
    shard = raw_shards(raw)[0]
    first, second = read_table(shard).to_pylist()
    assert (first["status"], second["status"], second["image_key"]) == ("failed_to_download", "success", "000000000")
    with tarfile.open(shard.tar) as tar:
        read = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]  # all are files
    assert read["000000000.jpg"] == A
    assert read["000000000.txt"] == b"text of 000000001"
    assert json.loads(read["000000000.json"])["page_url"] == "https://two.org/"


def test_a_stock_folder_of_img2dataset_is_purged_too(tmp_path):
    raw, _ = small_data.write(tmp_path, [Pair("a red fox", 1), Pair("a blue fox", 2)])
    table = pq.read_table(raw / "00000.parquet").drop_columns(["image_key", "page_url"])
    pq.write_table(table, raw / "00000.parquet")
    with tarfile.open(raw / "00000.tar", "a") as tar:
        link = tarfile.TarInfo("000000000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
    opted_out = policy(("url", "https://example.org/2.jpg"))
    assert purge_raw(raw, opted_out, opted_out_pairs(raw, opted_out)) == ["00000"]
    assert members(raw / "00000.tar") == ["000000000.jpg", "000000000.txt", "000000000.json"]
    assert not (raw / "manifest.json").exists()
    stats = json.loads((raw / "00000_stats.json").read_text())
    assert (stats["successes"], "tar_sha256" in stats) == (1, False)
    assert pq.read_table(raw / "00000.parquet").column_names == table.column_names


def requests(raw, **lines):
    files = {}
    for kind, text in lines.items():
        files[kind] = raw.parent / kind
        files[kind].write_text(text)
    return [(entry.kind, entry.value) for entry in read_requests(files, raw, "asked")]


def test_requests_become_what_outlives_an_ingest(raw):
    assert requests(raw, keys="# two pairs of one picture\n000000000\n\n000010001\n") == [
        ("image_id", SHA_A), ("url", "https://img.org/a.jpg"), ("url", "https://x.org/"),
    ]  # fmt: skip
    assert requests(raw, urls="HTTPS://IMG.org/c.jpg\nhttps://one.org/\n") == [
        ("image_id", SHA_C), ("url", "HTTPS://IMG.org/c.jpg"), ("url", "https://img.org/c.jpg"),
        ("url", "https://one.org/"),
    ]  # fmt: skip
    assert requests(raw, hosts="Example.ORG.\nmünchen.de\n") == [
        ("host", "example.org"), ("host", "münchen.de"), ("host", "xn--mnchen-3ya.de"),
    ]  # fmt: skip


def test_bad_lines_are_named_and_nothing_is_recorded(raw, capsys, monkeypatch):
    with pytest.raises(DataError, match=r"line 3: '777': no pair in data/raw has this key"):
        requests(raw, keys="000000000\n\n777\n")
    with pytest.raises(DataError, match=r"hosts, line 1: 'https://a.org/'.*urls, line 2: 'not a url'"):
        requests(raw, hosts="https://a.org/\n", urls="https://ok.org/\nnot a url\n")
    monkeypatch.chdir(raw.parents[1])
    assert main(["opt_out", "--keys", "nowhere.txt"]) == 1
    Path("keys").write_text("000000000\n777\n")
    assert main(["opt_out", "--keys", "keys"]) == 1
    assert main(["opt_out"]) == 1
    assert "nothing to opt out" in capsys.readouterr().err
    assert not Path("data/policy").exists()


def test_the_command_records_once_and_purges_only_when_told_to(raw, capsys, monkeypatch):
    monkeypatch.chdir(raw.parents[1])
    Path("hosts").write_text("host.org\n")
    assert main(["opt_out", "--hosts", "hosts", "--reason", "their letter"]) == 0
    said = capsys.readouterr()
    assert "1 new entries" in said.out
    assert "data/raw: 1 pairs, 1 pictures; 1 with bytes" in said.out
    assert "no MLflow here" in said.err
    recorded = Path("data/policy/opted_out.csv").read_bytes()
    assert main(["opt_out", "--hosts", "hosts", "--reason", "again"]) == 0
    assert "0 new entries" in capsys.readouterr().out
    assert Path("data/policy/opted_out.csv").read_bytes() == recorded
    assert read_opted_out(Path("data/policy")).entries[0].reason == "their letter"

    before = contents(raw)
    assert main(["opt_out", "--purge"]) == 1
    said = capsys.readouterr()
    assert "to go: 1 pictures of data/raw, and the texts of 1 pairs" in said.out
    assert "add --yes" in said.err
    assert contents(raw) == before
    for left in ("data/.shards.part", "data/.index.old"):
        Path(left).mkdir()
    with Path("data/.shards.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as while shards are made
        assert main(["opt_out", "--purge", "--yes"]) == 1
    said = capsys.readouterr()
    assert "data/raw: 1 pictures and the texts of 1 pairs, out of 1 rewritten shards" in said.out
    assert "not everything is gone: data/.shards.part" in said.err
    assert main(["opt_out", "--purge", "--yes"]) == 0
    assert not any(B in path.read_bytes() for path in raw.parents[1].rglob("*") if path.is_file())
    assert not Path("data/.shards.part").exists() and not Path("data/.index.old").exists()
    capsys.readouterr()
    assert main(["opt_out", "--purge", "--yes"]) == 0
    assert "nothing had to go" in capsys.readouterr().out


def test_shards_index_and_pages_that_show_it_go(raw, monkeypatch):
    root = raw.parents[1]
    monkeypatch.chdir(root)
    small_data.write(root / "made", [Pair("an owl at night", 2), Pair("a red fox", 1)])
    small_data.write_shards(root / "made").rename("data/shards")
    reports = root / "reports/filter"
    reports.mkdir(parents=True)
    (root / "reports/photos").mkdir()  # a person's
    (root / "reports/photos/wedding.jpg").write_bytes(b"the only copy")
    (reports / "report.html").write_text('<figure class="bad"><img src="data:image/jpeg;base64,AAAA"></figure>')
    (reports / "curve.html").write_text('<img src="data:image/png;base64,AAAA">')
    (reports / "metrics.json").write_text("{}")
    write_opted_out(Path("data/policy"), policy(("image_id", SHA_B)))
    assert main(["opt_out", "--purge", "--yes"]) == 0
    assert not Path("data/shards").exists()
    assert sorted(contents(reports)) == ["curve.html", "metrics.json"]
    assert (root / "reports/photos/wedding.jpg").is_file()


def test_tars_in_a_store_are_replaced_and_the_old_ones_deleted(raw, capsys, monkeypatch):
    monkeypatch.chdir(raw.parents[1])
    where = {"objects": "objects", "cache": ".align/store"}
    settings = [f"--set=store.{name}={path}" for name, path in where.items()]
    store = load_params(overrides=[word.removeprefix("--set=") for word in settings]).section(StoreConfig)
    for name, (sha256, _) in stored_tars(raw).items():
        keep_tar(raw / name, sha256, store)
    before = set(Path("objects").rglob("*.tar"))
    assert len(before) == 3
    write_opted_out(Path("data/policy"), policy(("image_id", SHA_B)))
    assert main(["opt_out", "--purge", "--yes", *settings]) == 0
    assert "store of tars objects: 1 tars" in capsys.readouterr().out
    after = set(Path("objects").rglob("*.tar"))
    assert (len(after), len(after & before)) == (3, 2)
    assert not any(B in path.read_bytes() for path in Path().rglob("*") if path.is_file())
    assert not list(raw.glob("*.tar"))
    assert {key for shard in raw_shards(raw, fetcher(store)) for key, _ in iter_images(shard)} == {
        "000000000", "000020000",
    }  # fmt: skip


def test_a_worktree_with_data_of_its_own_is_named(raw, capsys, monkeypatch):
    root = raw.parents[1]
    monkeypatch.chdir(root)
    git(root, "init", "--quiet")
    git(root, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--allow-empty", "-m", "empty")
    other = root.with_name("other")
    git(root, "worktree", "add", "--quiet", "--detach", str(other))
    shutil.copytree(raw, other / "data/raw")
    write_opted_out(Path("data/policy"), policy(("image_id", SHA_B)))
    assert main(["opt_out", "--purge", "--yes"]) == 1
    assert f"not everything is gone: {other}" in capsys.readouterr().err
    monkeypatch.chdir(other)
    write_opted_out(Path("data/policy"), policy(("image_id", SHA_B)))
    assert main(["opt_out", "--purge", "--yes"]) == 0  # the first checkout is clean now


def test_texts_go_too_from_tables_and_reports_made_before_anybody_asked(raw, monkeypatch):
    root = raw.parents[1]
    monkeypatch.chdir(root)
    decision = {"key": ["000010000"], "image_id": [SHA_B], "text": ["text of 000010000"], "keep": [True]}
    made = {
        "decisions/00000.parquet": decision,
        "facts/00000.parquet": {"key": ["000010000"], "opted_out": pa.array([None], pa.string())},
    }
    for name in ("filter", "index", "package"):
        (root / "reports" / name).mkdir(parents=True)
        (root / "reports" / name / "metrics.json").write_text("{}")  # as every stage writes it
    (root / "reports/filter/report.json").write_text(
        '{"overview": {"personal_data": {"examples": ["text of 000010000"]}}}'
    )
    (root / "reports/index/report.json").write_text('{"queries": [{"found": [{"texts": ["another"]}]}]}')
    filtered = root / "data/filtered"
    filtered.mkdir()
    for name, columns in made.items():
        (filtered / name).parent.mkdir()
        pq.write_table(pa.table(columns), filtered / name)
    write_opted_out(Path("data/policy"), policy(("url", "https://sub.host.org/b.jpg"), ("url", "https://x.org/")))
    assert main(["opt_out", "--purge", "--yes"]) == 0
    assert not filtered.exists()
    assert [path.parent.name for path in root.rglob("report.json")] == ["index"]
    assert [one["caption"] for one in read_table(raw_shards(raw)[1]).to_pylist()] == ["", ""]  # x.org had no picture


def test_a_purge_names_what_it_does_not_touch(raw, capsys, monkeypatch):
    monkeypatch.chdir(raw.parents[1])
    Path(".align/prefect").mkdir(parents=True)
    Path("hits.html").touch()
    version = Version(name="align", number=3, run_id="abc", tags={})
    seen = [SeenBy(version, None, "align version 3", {"train": 1}, "the checkout's data")]
    monkeypatch.setattr("align.lineage.take_down.opt_out.who_saw", lambda *_: seen)
    write_opted_out(Path("data/policy"), policy(("image_id", SHA_B)))
    for words in (["--purge"], ["--purge", "--yes"]):
        main(["opt_out", *words])
        said = capsys.readouterr().out
        for place, end in {
            "data/policy/opted_out.csv": "by them the pictures are refused",
            "data/sample/archive.warc.gz": "dvc repro --force --single-item ingest",
            ".align/prefect": "make down && rm -rf .align/prefect .align/logs",
            "MLflow, runs abc": "mlflow gc --run-ids RUN",
            "hits.html": "rm hits.html",
        }.items():
            line = next(number for number, line in enumerate(said.splitlines()) if line.startswith(f"  {place}"))
            assert end in said.splitlines()[line + 1]
