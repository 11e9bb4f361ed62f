"""Which recorded versions a purge ends, and which of their objects: over a cache as DVC writes it, without DVC."""

import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.formats.policy import Entry, OptedOut
from align.lineage.take_down.purge import purge
from align.lineage.take_down.purge_plan import plan_purge, telling_reports
from align.lineage.versions.data_versions import DataVersions
from align.services.s3.store import Objects
from tests.support import indexed
from tests.support.params import load_params
from tests.support.small_data import RAW_SCHEMA

A, B = "a" * 64, "b" * 64
TEXT, MASKED = "write to ann@example.org", "write to a••@•••••••.•••"


def table(columns, schema=None):
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns), schema=schema), buffer)
    return buffer.getvalue()


def raw(url, sha256, text="a fox"):
    """A table of data/raw with one pair."""
    row = {"url": url, "caption": text, "key": "000000000", "status": "success", "sha256": sha256}
    row |= {"image_key": "000000000", "page_url": "https://page.org/"}
    return table({name: [row.get(name)] for name in RAW_SCHEMA.names}, RAW_SCHEMA)


class History:
    """A checkout whose runs are recorded in DVC's run cache."""

    def __init__(self, root):
        self.root, self.cache, self._num_runs = root, root / ".dvc/cache", 0
        self.cache.mkdir(parents=True)
        (root / "data/raw").mkdir(parents=True)
        self.paths, self.store = (load_params().section(section) for section in (PathsConfig, StoreConfig))

    def put(self, data):
        """Caches a file; returns its md5."""
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        path = self.cache / "files/md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return md5

    def out(self, files):
        """Caches a folder; of a file that is None, the list alone. Returns its md5."""
        md5s = {name: "f" * 32 if data is None else self.put(data) for name, data in files.items()}
        md5 = self.put(json.dumps([{"relpath": name, "md5": md5} for name, md5 in md5s.items()]).encode())
        (self.cache / "files/md5" / md5[:2] / md5[2:]).rename(self.cache / "files/md5" / md5[:2] / f"{md5[2:]}.dir")
        return f"{md5}.dir"

    def ran(self, outs, deps=None):
        """Records a run: path -> md5."""
        folder = self.cache / "runs/ab" / f"{self._num_runs:064x}"
        folder.mkdir(parents=True)
        self._num_runs += 1
        listed = {
            kind: [{"path": path, "md5": md5} for path, md5 in named.items()]
            for kind, named in (("deps", deps or {}), ("outs", outs))
        }
        with (folder / "run").open("w") as file:
            YAML().dump({"cmd": "run", **listed}, file)

    def versions(self):
        return DataVersions(self.root, self.root / "scratch")

    def plan(self, *entries):
        opted_out = OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)
        return plan_purge(self.versions(), opted_out, self.paths)


@pytest.fixture
def history(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = History(tmp_path)
    settings = {"cache": str(made.cache), "remotes": {}}
    monkeypatch.setattr("align.lineage.versions.data_versions.settings", lambda root: settings)
    return made


def test_what_another_version_needs_stays(history):
    shown, shared, clean = raw("https://img.org/a.jpg", A), b"a tar of other pictures", raw("https://img.org/b.jpg", B)
    before = history.out({"00000.parquet": shown, "00000.tar": b"a tar with the picture", "00001.tar": shared})
    after = history.out({"00000.parquet": clean, "00001.tar": shared})
    for md5 in (before, after):
        history.ran({"data/raw": md5})
    doomed = history.plan(("image_id", A)).doomed
    assert {md5 for _, md5 in doomed.versions} == {before} and doomed.clean_versions == {("data/raw", after)}
    gone = {before, history.put(shown), history.put(b"a tar with the picture")}
    assert doomed.to_remove() == gone
    assert doomed.to_remove({"00000.parquet": history.put(shown)}) == gone - {history.put(shown)}  # made since


@pytest.mark.parametrize(("path", "files", "why"), [
    ("data/shards", {"manifest.json": b"{}", "train/00000.tar": None}, "not on this machine, so it was not checke"),
    ("data/shards", {"manifest.json": b"{", "train/00000.tar": b""}, "unreadable: "),
    ("data/raw", {"00000.parquet": None}, "incomplete, so it cannot be checked"),
    ("data/raw", {"00000.parquet": b"PAR1 and no more"}, "unreadable: "),
    ("data/filtered", {"decisions/00000.parquet": b"PAR1", "facts/00000.parquet": b""}, "unreadable: "),
])  # fmt: skip
def test_what_cannot_be_checked_goes(history, path, files, why):
    md5 = history.out(files)
    history.ran({path: md5})
    ((of, reason),) = history.plan(("image_id", A)).doomed.versions.items()
    assert of == (path, md5) and reason.startswith(f"run cache; {why}")


@pytest.mark.parametrize("part", ["/00000.parquet", ".parquet"], ids=["parts", "older"])
def test_pictures_and_texts_of_older_versions_are_looked_for_in_what_was_made_of_them(history, part, tmp_path):
    (history.root / "data/raw/00000.parquet").write_bytes(raw("https://img.org/b.jpg", B))
    older = history.out({"00000.parquet": raw("https://gone.org/a.jpg", A, TEXT)})
    filtered = history.out({
        f"decisions{part}": table({"key": ["0"], "image_id": [A], "text": [TEXT]}),
        f"facts{part}": table({"key": ["0"], "opted_out": pa.array([None], pa.string())}),
    })  # fmt: skip
    index, others = (
        history.out(
            {"items.parquet": (indexed.write(tmp_path / "index", 1, image_id=[one]) / "items.parquet").read_bytes()}
        )
        for one in (A, B)
    )
    history.ran({"data/raw": older})
    history.ran({"data/filtered": filtered}, {"data/raw": older})
    for md5 in (index, others):
        history.ran({"data/index": md5})
    plan = history.plan(("host", "gone.org"))
    assert set(plan.doomed.versions) == {("data/raw", older), ("data/filtered", filtered), ("data/index", index)}
    assert (plan.image_ids, plan.texts) == ({A}, {(A, TEXT)})
    assert plan.pairs.num_pairs == 0  # the checkout has none of them


def test_of_reports_go_the_pages_with_pictures_and_the_quotations(history):
    shown = history.out({"00000.parquet": raw("https://img.org/a.jpg", A, TEXT)})
    files = {
        "report.json": json.dumps({"longest": [{"text": MASKED}]}).encode(), "metrics.json": b"{}",
        "report.html": b'<img src="data:image/jpeg;base64,AAAA">', "curve.html": b"<svg/>", "montage.jpg": b"small",
    }  # fmt: skip
    of_filter, of_ingest = history.out(files), history.out({"report.html": b"<figure>of an archive</figure>"})
    history.ran({"data/raw": shown, "reports/ingest": of_ingest})
    history.ran({"reports/filter": of_filter}, {"data/raw": shown})
    removed = history.plan(("image_id", A)).doomed.to_remove()
    gone = {history.put(files[name]) for name in ("report.json", "report.html", "montage.jpg")}
    assert removed == gone | {shown, history.put(raw("https://img.org/a.jpg", A, TEXT))}


def test_ingests_report_stays_in_the_checkout(tmp_path):
    for stage in ("ingest", "filter"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.json").write_text("{}")
        (tmp_path / stage / "report.json").write_text(json.dumps({"of": [TEXT]}))
    texts = frozenset({(A, TEXT), (None, "another")})
    assert telling_reports(tmp_path, texts) == [tmp_path / "filter/report.json"]
    assert telling_reports(tmp_path, frozenset({(None, "another")})) == []


def test_tars_that_clean_versions_need_stay_in_the_store(history):
    """Two clean versions share a tar with the one that goes, and with each other."""
    store = history.store.model_copy(update={"objects": str(history.root / "objects")})
    tar = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("shown", "shared", "first", "second")}
    for name, sha256 in tar.items():
        path = Path(Objects(store).uri(sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    def version(table, *names):
        listed = [{"name": name, "tar_sha256": tar[name], "tar_bytes": len(name)} for name in names]
        return history.out({"00000.parquet": table, "manifest.json": json.dumps({"shards": listed}).encode()})

    history.ran({"data/raw": version(raw("https://img.org/a.jpg", A), "shown", "shared")})
    history.ran({"data/raw": version(raw("https://img.org/b.jpg", B), "shared", "first")})
    history.ran({"data/raw": version(raw("https://img.org/c.jpg", "c" * 64), "shared", "second")})
    plan = history.plan(("image_id", A))
    (result, *_) = purge(history.versions(), plan, history.paths, store)
    assert (result.where, result.removed) == (f"store of tars {store.objects}", "1 tars")
    assert {name for name, sha256 in tar.items() if Objects(store).exists(sha256)} == {"shared", "first", "second"}


def test_a_remote_that_did_not_answer_is_left(history):
    plan, versions = history.plan(), history.versions()
    assert list(purge(versions, plan, history.paths, history.store)) == []
    versions.unreachable["cloud"] = "no route to host"
    (result,) = purge(versions, plan, history.paths, history.store)
    assert (result.where, result.left) == ("DVC remote 'cloud'", "no route to host")


def test_a_remote_is_asked_three_times_for_all_versions(history, monkeypatch):
    """Each question opens the remote anew."""
    asked = []

    def copy(root, name, md5s, to):
        asked.append(len(md5s))

    monkeypatch.setattr("align.services.dvc.objects.copy", copy)
    settings = {"cache": str(history.cache), "remotes": {"cloud": "s3://bucket"}}
    monkeypatch.setattr("align.lineage.versions.data_versions.settings", lambda root: settings)
    for number in range(5):
        lost = {f"{number}.parquet": None, "report.html": None}
        history.ran({"data/raw": history.out(lost), "data/filtered": f"{number:031x}f.dir"}, {"data/raw": "a.dir"})
    history.plan(("image_id", A))
    assert 0 < len(asked) <= 3 and sum(asked) >= 6
