"""Which registered versions saw a pair, by the data that trained them, first to last; MLflow is real."""

from pathlib import Path

import pytest

from align.formats.shards import read_manifest
from align.lineage.data_versions import DataVersions
from align.lineage.trained_models import TrainedModel, find_trained_models
from align.services.tracking import Tracker
from tests.support import training_data

GONE = "f" * 64
IMPORT = {"align.imported_from": "align-base", "align.imported_weights": "0123456789abcdef"}
IMPORTED = "imported from align-base, weights 0123456789ab: which data trained that is unknown"


def seen(
    tmp_path: Path, server: str, name: str, versions: list[dict[str, str]], counts: dict[str, int]
) -> list[TrainedModel]:
    """What versions with these tags saw of pairs that the checkout's data has in these splits."""
    tracker = Tracker(server)
    run = tracker.start_run(name, "training")
    tracker.end_run(run)
    for tags in versions:
        tracker.registry.create_version(name, run, "model", tags)
    found, why = find_trained_models(
        name, tmp_path / "shards", DataVersions(tmp_path, tmp_path / "scratch"), lambda _: counts
    )
    assert why is None
    return found


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
