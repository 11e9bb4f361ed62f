"""A trace from the champion to a web page, and from a key to the champion; which registered versions saw a pair, by the
data that trained them, first to last. Git, DVC and MLflow are real.
"""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from align.cli import main
from align.durable.files import sha256_folder
from align.formats.shards import read_manifest
from align.lineage.trace.trace import ARTIFACT, log_page
from align.lineage.versions.at_revision import Revisions
from align.lineage.versions.registered import Registered
from align.lineage.versions.who_saw import who_saw
from align.services.git import git
from align.services.tracking.tracker import Tracker
from flows.checkout.run_branch import record
from tests.support import pictures_project, training_data
from tests.support.dvc_projects import enter, shell
from tests.support.params import load_params
from tests.support.pictures_project import CODE, INGEST_AND_FILTER, NUM_PICTURES
from tests.support.warm import commands

#: The real ingest and filter over nine pictures. The later stages are stubs: what counts is what they record.
DVC_YAML = (
    INGEST_AND_FILTER
    + """\
  validate: {cmd: python -m stages validate, deps: [data/filtered], outs: [reports/quality]}
  shard:
    cmd: python -m stages shard
    deps: [data/raw, data/filtered, reports/quality/verdict.json]
    outs: [data/shards, reports/shard]
  validate_shards: {cmd: python -m stages validate_shards, deps: [data/shards], outs: [reports/quality_shards]}
  finetune: {cmd: python -m stages finetune, deps: [data/shards], outs: [models/finetuned, reports/finetune]}
  package: {cmd: python -m stages package, deps: [models/finetuned], outs: [models/packaged, reports/package]}
  index: {cmd: python -m stages index, deps: [data/shards, models/finetuned], outs: [data/index, reports/index]}
"""
)
STAGES = """\
import hashlib, json, sys
from pathlib import Path
import pyarrow.parquet as pq
from align.formats.filtered import decisions_digest
from align.durable.files import sha256_folder
from align.formats.shards import read_manifest
from tests.support import small_data
stage, reports = sys.argv[1], Path("reports")
decisions, manifest = decisions_digest(Path("data/filtered")), Path("data/shards/manifest.json")
def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
if stage == "validate":
    reports.joinpath("quality").mkdir(parents=True)
    small_data.write_verdict(reports / "quality", passed=True, data=decisions)
    report = json.loads((reports / "quality/report.json").read_text())
    report["expectations"] = [
        {"name": "raw-pairs", "passed": True, "accepted": None},
        {"name": "drift", "passed": False, "accepted": {"by": "Ada", "reason": "a new <b>crawl</b>"}},
    ]
    write(reports / "quality/report.json", report)
elif stage == "shard":
    small_data.write_shards(Path("data"))
    write(reports / "shard/report.json", {"digest": read_manifest(Path("data/shards")).digest, "decisions": decisions})
elif stage == "validate_shards":
    reports.joinpath("quality_shards").mkdir()
    small_data.write_verdict(
        reports / "quality_shards", passed=True, data=read_manifest(Path("data/shards")).digest
    )
elif stage == "finetune":
    write(reports / "finetune/report.json", {})
    write(Path("models/finetuned/weights"), hashlib.sha256(manifest.read_bytes()).hexdigest())
elif stage == "package":
    weights = Path("models/finetuned/weights").read_bytes()
    write(Path("models/packaged/MLmodel"), hashlib.sha256(weights).hexdigest())
    write(reports / "package/report.json", {"digest": hashlib.sha256(weights).hexdigest()})
else:
    kept = pq.read_table("data/filtered/decisions", filters=[("keep", "==", True)])
    write(reports / "index/report.json", {})
    Path("data/index").mkdir()
    pq.write_table(kept.select(["key", "image_id"]), "data/index/items.parquet")
    digest = read_manifest(Path("data/shards")).digest
    header = {"schema_version": 5, "model_digest": "a" * 64, "shards_digest": digest, "thumbnail_px": 0, "files": {}}
    header["vectors_sha256"] = {}
    write(Path("data/index/index.json"), header | {"num_items": kept.num_rows, "width": 4, "rules": {}})
"""
MODEL = "traced"


@pytest.fixture(scope="module")
def made(tmp_path_factory, mlflow_server):
    """A project whose pipeline has run, recorded as run/first; its model is version 1 and the champion."""
    root = tmp_path_factory.mktemp("trace") / "project"
    pictures_project.write(root, MODEL, {"dvc.yaml": DVC_YAML, "stages.py": STAGES}, "https://pages.example/")
    run_and_register(root, mlflow_server, "first", ["champion", "candidate"])
    return root


@pytest.fixture
def project(made, tmp_path, mlflow_server, monkeypatch):
    """A copy of its own; `align` works there, in this process."""
    root = tmp_path / "project"
    shutil.copytree(made, root, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(commands() / "python"))  # of the programs that it starts
    return enter(root, monkeypatch, CODE | {"MLFLOW_TRACKING_URI": mlflow_server})


def run_and_register(root, server, name, aliases):
    """Runs the pipeline, records it, and registers its model as `align register` does."""
    shell(root, "dvc repro --quiet", CODE)
    recorded = record(root, name, f"run {name}")
    data = json.loads((root / "data/shards/manifest.json").read_text())["digest"]
    model = json.loads((root / "reports/package/report.json").read_text())["digest"]
    tags = {"align.data_digest": data, "align.trained_on": data, "align.model_digest": model,
            "align.git_revision": recorded.commit, "align.branch": f"run/{recorded.name}",
            "align.index_digest": sha256_folder(root / "data/index")}  # fmt: skip
    tracker = Tracker(server)
    run = tracker.start_run(MODEL, recorded.name, tags=tags)
    tracker.log_params(run, {"finetune.num_steps": 7, "model.image_px": 16})
    tracker.log_metrics(run, {"x/recall@10": 0.5, "x/recall@10/low": 0.4, "x/recall@10/high": 0.6})
    tracker.end_run(run)
    version = tracker.registry.create_version(MODEL, run, "model", tags)
    for alias in aliases:
        tracker.registry.set_alias(version, alias)


def traced(capsys, *words):
    """What `align trace --json` prints."""
    assert main(["trace", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    """The one line of a command that fails."""
    assert main(["trace", *words]) == 1
    said = capsys.readouterr()
    assert not said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("align: error: ")]
    return line


def kinds(trace):
    """The kinds of its sections, in their order."""
    return list(dict.fromkeys(one["kind"] for one in trace["sections"]))


def facts(trace, kind):
    """The facts of the last section of a kind: the whole comes after its parts."""
    return dict([one for one in trace["sections"] if one["kind"] == kind][-1]["facts"])


def asked(trace):
    return [one["kind"] for one in trace["sections"] if one["asked"]]


def key_of(root, number):
    rows = pq.read_table(root / "data/filtered/decisions").to_pylist()
    (row,) = [row for row in rows if f"number {number} " in row["text"]]
    return str(row["key"])


CHAIN = ["source", "page", "pair", "decision", "gate", "shards", "run", "version", "alias", "index"]


def test_from_the_champion_to_web_pages(project, capsys):
    trace = traced(capsys, f"{MODEL}@champion")
    assert kinds(trace) == CHAIN
    assert not trace["notes"] and not any(one["missing"] for one in trace["sections"])
    pages = [one["facts"]["page"] for one in trace["sections"] if one["kind"] == "page"]
    assert pages and all(page.startswith("https://pages.example/") for page in pages)
    assert facts(trace, "decision")["kept"] == f"{NUM_PICTURES} of {NUM_PICTURES}"
    assert facts(trace, "gate")["accepted"] == "drift, by Ada: a new <b>crawl</b>"
    assert facts(trace, "run")["branch"] == "run/first"
    assert facts(trace, "run")["recipe"] == "finetune.num_steps=7"
    assert facts(trace, "run")["x/recall_at_10"] == "50.0% (40.0% to 60.0%)"
    assert facts(trace, "index")["made by"] == f"{MODEL} version 1, the champion"
    assert traced(capsys, f"{MODEL}/1") | {"asked": ""} == trace | {"asked": ""}


def test_from_a_key_an_address_and_a_picture_to_the_champion(project, capsys):
    key = key_of(project, 4)
    trace = traced(capsys, key)
    assert kinds(trace) == CHAIN and asked(trace) == ["pair"]
    assert f"the champion, {MODEL} version 1, was trained on it" in trace["answers"]
    assert f"the picture is in data/index, made by {MODEL} version 1, the champion" in trace["answers"]
    pair, place, page = facts(trace, "pair"), facts(trace, "shards"), facts(trace, "page")
    assert pair["text"] == "picture number 4 of a red fox"
    (seen,) = [value for label, value in pair.items() if label.startswith(f"{MODEL} version 1 (")]
    assert seen == "TRAINED on it; the checkout's data"
    assert (place["split"], place["sample"]) == ("train", key)
    assert page["page"] == "https://pages.example/1.html"
    picture = next((project / "pictures").glob("4.jpg"))
    for words in (pair["sha256"], pair["picture"], f"key:{key}", str(picture)):
        assert traced(capsys, words)["sections"] == trace["sections"]
    of_page = [one for one in traced(capsys, page["page"])["sections"] if one["kind"] == "pair"]
    assert len(of_page) == NUM_PICTURES // 3
    assert all("TRAINED on it; the checkout's data" in one["facts"].values() for one in of_page)


def test_from_a_run_both_ways(project, capsys):
    run_id = facts(traced(capsys, f"{MODEL}@champion"), "run")["MLflow run"]
    for words in ("first", "run/first", run_id, run_id[:12], "run:first"):
        trace = traced(capsys, words)
        assert kinds(trace) == CHAIN and asked(trace) == ["run"], words
        assert trace["answers"][0] == f"its model is {MODEL} version 1"


@pytest.fixture
def without_second(mlflow_server):
    """Afterwards version 1 is the champion and the only one again."""
    yield
    client = MlflowClient(mlflow_server)
    client.set_registered_model_alias(MODEL, "champion", "1")
    client.delete_model_version(MODEL, "2")


@pytest.mark.usefixtures("without_second")
def test_data_of_an_earlier_run_comes_from_the_cache_and_what_is_gone_is_named(project, mlflow_server, capsys):
    key = key_of(project, 4)
    (project / "urls.txt").write_text(f"{key}\n")
    assert main(["opt_out", "--keys", "urls.txt"]) == 0
    run_and_register(project, mlflow_server, "second", ["champion"])
    capsys.readouterr()

    # Dropped today; the first version had it, and its data is read at the revision of that version.
    trace = traced(capsys, key)
    assert f"trained on it: {MODEL} version 1 (candidate)" in trace["answers"]
    assert f"the champion, {MODEL} version 2, was not trained on it" in trace["answers"]
    assert "the picture is not in data/index" in trace["answers"]
    assert {"decision", "shards", "run", "version", "alias"} <= {*kinds(trace)}
    assert facts(trace, "decision")["reasons"] == "opted_out"
    pair = facts(trace, "pair")
    assert pair[f"{MODEL} version 1 (candidate)"] == "TRAINED on it; as of run/first"
    assert pair[f"{MODEL} version 2 (champion)"] == "did not see it; the checkout's data"
    earlier = traced(capsys, f"{MODEL}/1")
    assert facts(earlier, "shards")["where"] == "as of run/first"
    assert facts(earlier, "decision")["kept"] == f"{NUM_PICTURES} of {NUM_PICTURES}"
    assert kinds(earlier) == CHAIN[:-1]
    assert f"the index in data/index was made by {MODEL} version 2, the champion" in earlier["answers"]

    # Without the cache the rest is shown, with what brings the data.
    shutil.rmtree(project / ".dvc/cache")
    assert main(["trace", f"{MODEL}/1"]) == 0
    text = capsys.readouterr().out
    assert "not here, because   data" in text and "`git fetch --all --tags`" in text
    assert "> model version         traced version 1 (candidate)" in text
    git(project, "branch", "-D", "run/first", "run/second")
    git(project, "reflog", "expire", "--expire=now", "--all")
    git(project, "gc", "--quiet", "--prune=now")
    assert "is not in this repository; `git fetch --all`" in str(traced(capsys, f"{MODEL}/1"))


def test_without_mlflow_the_data_half_is_shown_with_one_line(project, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for words in (key_of(project, 4), "run/first"):
        assert main(["trace", words]) == 0
        said = capsys.readouterr()
        assert len([line for line in said.err.splitlines() if "MLflow at http://127.0.0.1:9" in line]) == 1, words
        assert "quality gate" in said.out and "shards" in said.out
    assert "MLflow at http://127.0.0.1:9" in refused(capsys, f"{MODEL}@champion")


@pytest.mark.usefixtures("project")
def test_the_page_is_kept_with_the_version(mlflow_server, tmp_path):
    version = Tracker(mlflow_server).registry.versions(MODEL)[0]
    log_page(load_params(Path("params.yaml")), version)
    client = MlflowClient(mlflow_server)
    assert [item.path for item in client.list_artifacts(version.run_id, "lineage")] == [ARTIFACT]
    page = Path(client.download_artifacts(version.run_id, ARTIFACT, str(tmp_path))).read_text()
    assert "picture number" in page and "data:image/jpeg" in page and "<b>crawl" not in page


def test_what_is_ambiguous_or_unknown_is_one_line(project, capsys):
    key = key_of(project, 4)
    git(project, "branch", f"run/{key}", "run/first")
    line = refused(capsys, key)
    assert f"'{key}' names more than one thing: run {key} (`run:run/{key}`), pair {key} (`key:{key}`)" in line
    assert facts(traced(capsys, f"key:{key}"), "pair")["sha256"]
    assert "names nothing here" in refused(capsys, "x' or 'a'='a@champion")
    assert "no address of a picture or page in data/raw" in refused(capsys, "https://example.org/\x1b[31m")


GONE = "f" * 64
IMPORT = {"align.imported_from": "align-base", "align.imported_weights": "0123456789abcdef"}
IMPORTED = "imported from align-base, weights 0123456789ab: which data trained that is unknown"


def seen(tmp_path, server, name, versions, counts):
    """What versions with these tags saw of pairs that the checkout's data has in these splits."""
    tracker = Tracker(server)
    run = tracker.start_run(name, "training")
    tracker.end_run(run)
    for tags in versions:
        tracker.registry.create_version(name, run, "model", tags)
    answer = ask(tmp_path, name, counts)
    assert all(one.version for one in answer)
    return answer


def ask(tmp_path, name, counts):
    revisions = Revisions(tmp_path, tmp_path / "scratch")
    return who_saw(Registered(name, name), tmp_path / "shards", revisions, lambda _: counts)


@pytest.mark.parametrize(("split", "name"), [("train", "in training"), ("test", "held out")])
def test_an_import_is_unknown_and_never_not_trained(tmp_path, mlflow_server, monkeypatch, split, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    shards, _ = training_data.write(tmp_path)
    digest = read_manifest(shards).digest
    data = {"align.data_digest": digest}
    tuned, as_it_is, ours, of_both, of_more, untagged = seen(
        tmp_path, mlflow_server, f"history {name}",
        [
            data | {"align.trained_on": digest} | IMPORT,
            data | {"align.trained_on": "nothing"} | IMPORT,
            data | {"align.trained_on": digest},
            data | {"align.trained_on": f"{GONE}, {digest}"},
            data | {"align.trained_on": f"{digest}, unknown"},
            data,
        ],
        {split: 2},
    )  # fmt: skip
    sure = {split: 2}
    assert (ours.seen, ours.why) == (sure, "the checkout's data")
    assert tuned.why == as_it_is.why == f"the checkout's data; {IMPORTED}"
    assert as_it_is.seen is None and untagged.seen is None
    assert tuned.seen == of_both.seen == (sure if split == "train" else None)
    assert of_both.why.startswith("data ffffffffffff is not in this checkout") and "saw" not in of_both.why
    assert untagged.why == "the checkout's data; there is no tag align.trained_on"
    assert of_more.seen == (sure if split == "train" else None)
    assert of_more.why == "the checkout's data; more data trained it than its tag has room for"


def test_a_run_that_registered_no_version_is_asked_too(tmp_path, mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    shards, _ = training_data.write(tmp_path)
    data = dict.fromkeys(("align.data_digest", "align.trained_on"), read_manifest(shards).digest)
    tracker = Tracker(mlflow_server)
    for experiment, name, tags in (
        ("unregistered", "ours", data | {"align.model_digest": "1"}),
        ("unregistered", "nothing recorded", {}),
        ("unregistered", "registered", data | {"align.model_digest": "2"}),
        ("unregistered", "again", data | {"align.model_digest": "2"}),
        ("another experiment", "not ours", data),
    ):
        run = tracker.start_run(experiment, name, tags=tags)
        tracker.end_run(run)
        if name == "registered":
            tracker.registry.create_version("unregistered", run, "model", tags)
    answer = ask(tmp_path, "unregistered", {"train": 1})
    assert [(one.title, one.trained) for one in answer] == [
        ("unregistered version 1", True), ("run ours, which registered no version", True),
    ]  # fmt: skip
