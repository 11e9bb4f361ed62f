"""Which registered versions saw a pair, by the data that trained them, first to last; MLflow is real."""

from pathlib import Path

import pytest

from align.config.release import RegisterConfig
from align.formats.shards import read_manifest
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.who_saw import SeenBy, WhoSaw, who_saw
from align.services.tracking.tracker import Tracker
from tests.support import training_data

GONE = "f" * 64
IMPORT = {"align.imported_from": "align-base", "align.imported_weights": "0123456789abcdef"}
IMPORTED = "imported from align-base, weights 0123456789ab: which data trained that is unknown"


def seen(
    tmp_path: Path, server: str, name: str, versions: list[dict[str, str]], counts: dict[str, int]
) -> list[SeenBy]:
    """What versions with these tags saw of pairs that the checkout's data has in these splits."""
    tracker = Tracker(server)
    run = tracker.start_run(name, "training")
    tracker.end_run(run)
    for tags in versions:
        tracker.registry.create_version(name, run, "model", tags)
    answer = ask(tmp_path, name, counts)
    assert answer.problem is None
    assert not answer.runs
    return list(answer.models)


def ask(tmp_path: Path, name: str, counts: dict[str, int]) -> WhoSaw:
    versions = DataVersions(tmp_path, tmp_path / "scratch")
    register = RegisterConfig(experiment=name, model_name=name)
    return who_saw(register, tmp_path / "shards", versions, lambda _: counts)


@pytest.mark.parametrize(("split", "name"), [("train", "in training"), ("test", "held out")])
def test_an_import_is_unknown_and_never_not_trained(
    tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, split: str, name: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    shards, _ = training_data.write(tmp_path)
    digest = read_manifest(shards).digest
    data = {"align.data_digest": digest}
    tuned, as_it_is, ours, of_both, of_unknown, of_more, earlier = seen(
        tmp_path, mlflow_server, f"history {name}",
        [
            data | {"align.trained_on": digest} | IMPORT,
            data | {"align.trained_on": "nothing"} | IMPORT,
            data | {"align.trained_on": digest},
            data | {"align.trained_on": f"{GONE}, {digest}"},
            data | {"align.trained_on": "unknown"},
            data | {"align.trained_on": f"{digest}, unknown"},
            data,
        ],
        {split: 2},
    )  # fmt: skip
    sure = {split: 2}
    assert (ours.seen, ours.why) == (earlier.seen, earlier.why) == (sure, "the checkout's data")
    assert tuned.why == as_it_is.why == f"the checkout's data; {IMPORTED}"
    assert as_it_is.seen is None and of_unknown.seen is None
    assert tuned.seen == of_both.seen == (sure if split == "train" else None)
    assert of_both.why.startswith("data ffffffffffff is neither checked out nor") and "saw" not in of_both.why
    assert "the model that it began with does not say which data trained it" in of_unknown.why
    assert of_more.seen == (sure if split == "train" else None)
    assert of_more.why == "the checkout's data; more data trained it than its tag has room for"


def test_a_run_that_registered_no_version_is_asked_too(
    tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    shards, _ = training_data.write(tmp_path)
    data = {"align.data_digest": read_manifest(shards).digest}
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
    assert [(one.title, one.trained) for one in answer.models] == [("unregistered version 1", True)]
    assert [(one.title, one.trained) for one in answer.runs] == [("run ours, which registered no version", True)]
