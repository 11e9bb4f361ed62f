"""What is logged, however much it is; and a server at MLflow's address that is something else, or lies."""

import json

import pytest

from align.errors import AlignError
from align.services.tracking.registry import Version
from align.services.tracking.tracker import Tracker
from tests.support.odd_server import answering

VERSION = {
    "name": "<script>", "version": "3", "run_id": "../../x", "tags": [{"key": "align.model_digest", "value": "../"}],
}  # fmt: skip
RUN = {"info": {"run_id": "x", "artifact_uri": "file:///etc", "status": "?", "start_time": "never"}, "data": {}}
ODD = {"model_version": VERSION | {"version": "../x"}, "model_versions": [VERSION | {"version": "NaN"}], "runs": [RUN],
       "registered_model": {"name": "a", "aliases": [{"alias": "champion", "version": "-5"}]},
       "experiments": [{"experiment_id": "1", "name": "a", "artifact_location": "file:///etc"}]}  # fmt: skip
ANSWERS = {
    "a page": (200, {"Content-Type": "text/html"}, b"<html>log in</html>"), "a list": (200, {}, b"[]"),
    "null": (200, {}, b"null"), "no object": (200, {}, b"{}"), "deep": (200, {}, b"[" * 200_000),
    "other types": (200, {}, b'{"model_version": 5, "runs": 7, "experiments": 3, "model_versions": "x"}'),
    "odd values": (200, {}, json.dumps(ODD).encode()), "cut off": (200, {"Content-Length": "100"}, b"{"),
    "no text": (200, {}, b"\xff\xfe{}"), "not gzip": (200, {"Content-Encoding": "gzip"}, b"{}"),
    "to a file": (302, {"Location": "file:///etc/passwd"}, b""), "failed": (500, {}, b"x" * 1000),
    "hostile": (200, {}, json.dumps({"model_version": VERSION, "model_versions": [VERSION], "run": RUN}).encode()),
    "listing": (200, {}, b'{"files": [{"path": "../../evil", "is_dir": false}, {"path": "/evil", "is_dir": true}]}'),
}  # fmt: skip
QUESTIONS = (
    lambda tracker, folder: tracker.registry.version_at("align", "champion"),
    lambda tracker, folder: tracker.registry.versions("align"),
    lambda tracker, folder: tracker.registry.aliases("align"),
    lambda tracker, folder: tracker.registry.champion_state("align"),
    lambda tracker, folder: tracker.runs(),
    lambda tracker, folder: tracker.run("r"),
    lambda tracker, folder: tracker.registry.download(Version("a", 1, "r", {}), "index/../../../../evil", folder),
    lambda tracker, folder: tracker.registry.download(Version("a", 1, "r", {}), "index", folder),
)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_lie_is_an_answer_or_one_line(tmp_path, monkeypatch, answer):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "deep/er/scratch"
    folder.mkdir(parents=True)
    with answering(lambda _: answer) as url:
        for question in QUESTIONS:
            try:
                question(Tracker(url), folder)
            except AlignError as refused:
                assert "\n" not in str(refused)
    assert [path for path in tmp_path.rglob("*") if path.name == "evil" or path.is_file()] == []


@pytest.mark.usefixtures("small_blocks")
def test_every_point_and_parameter_is_logged_once(tmp_path, empty_mlflow):
    tracker = Tracker(empty_mlflow(tmp_path))
    run = tracker.start_run("curves", "long")
    rows = [{"step": step, "loss": step / 2, "rate": step * 3} for step in range(5)]
    tracker.log_series(run, rows)
    tracker.log_params(run, {f"p{number}": number for number in range(8)})
    for name in ("loss", "rate"):
        found = tracker._client.get_metric_history(run, name)
        assert [(point.step, point.value) for point in found] == [(row["step"], row[name]) for row in rows]
    assert tracker.run(run).params == {f"p{number}": str(number) for number in range(8)}
