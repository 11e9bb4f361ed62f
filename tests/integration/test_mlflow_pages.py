"""What people see of runs and versions in MLflow: curves, tags, pictures, tables, the card, the list of runs."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from align.release.registration.model_card import CARD, MAX_DESCRIPTION
from align.release.registration.register import Origin, register
from align.release.registration.results import PipelineOutputs
from align.release.registration.shown import PICTURES
from align.services.tracking.runs_view import KEY
from tests.support import registered
from tests.support.registered import VALUES, Project

LOSS = "pretrain/train/loss"


@pytest.fixture
def project(tmp_path: Path, mlflow_server: str) -> Project:
    return registered.write(tmp_path, mlflow_server)


def client(project: Project) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(project.tracker.uri, project.tracker.uri)


def write_pictures(project: Project, colour: str) -> None:
    for name in ("same_text_to_image", "same_image_to_text", "recall"):
        Image.new("RGB", (60, 40), colour).save(project.root / f"reports/evaluation/{name}.png")


def test_a_curve_has_no_point_of_its_end_at_step_0(project: Project) -> None:
    (project.root / "reports/pretrain/metrics.json").write_text(json.dumps({LOSS: 2.0, "pretrain/num_steps": 30}))
    done = project.register()
    history = client(project).get_metric_history(done.run_id, LOSS)
    assert [(point.step, point.value) for point in history] == [(10, 4.0), (20, 3.0), (30, 2.0)]
    assert [point.step for point in client(project).get_metric_history(done.run_id, "pretrain/num_steps")] == [0]


def test_a_cached_rerun_leaves_the_tags_of_the_run_that_trained(project: Project) -> None:
    first = project.register()
    before = client(project).get_run(first.run_id).data.tags
    outputs = PipelineOutputs(project.root / "packaged", project.root / "shards", project.root / "reports", ())
    cached = Origin("4567def", "another-lock", "flow-2", cached_stages=("ingest", "pretrain", "package"))
    again = register(project.config, outputs, VALUES, origin=cached, tracker=project.tracker, run_id=None)
    assert again.run_id == first.run_id
    assert client(project).get_run(first.run_id).data.tags == before


def test_pictures_and_tables_are_shown_once_under_fixed_names(project: Project) -> None:
    write_pictures(project, "navy")
    (project.root / "reports/evaluation/report.json").write_text(
        json.dumps({"classes": {"drawings": {"fox": {"num_images": 4, "accuracy": 0.25}}}})
    )
    run = project.tracker.start_run(project.config.experiment, "the flow's")
    for _ in range(2):  # a retry of `align register` shows nothing twice
        project.register(run)
    files = [file.path for file in client(project).list_artifacts(run, "images")]
    keys = sorted(path.removeprefix("images/").split("+")[0] for path in files if path.endswith(".png"))
    assert keys == ["retrieval~image_to_text", "retrieval~recall", "retrieval~text_to_image"]
    assert table(project, run, "recall") == [
        {
            "measure": "concepts/image_to_text/recall@10",
            "with interval": "50.0% (40.0% to 60.0%), by chance 10.0%",
            "value": 0.5,
            "low": 0.4,
            "high": 0.6,
            "chance": 0.1,
        }
    ]
    assert table(project, run, "classes") == [{"class": "drawings/fox", "accuracy": 0.25, "images": 4}]
    shown = json.loads(client(project).get_run(run).data.tags["mlflow.loggedArtifacts"])
    assert {"path": "tables/recall.json", "type": "table"} in shown


def table(project: Project, run: str, name: str) -> list[dict[str, Any]]:
    """The rows of a table that MLflow shows."""
    stored = json.loads(Path(client(project).download_artifacts(run, f"tables/{name}.json")).read_text())
    return [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]]


def description(project: Project, version: int) -> str:
    """What the registry's page of a version says."""
    return client(project).get_model_version(project.config.model_name, str(version)).description or ""


def test_a_version_has_a_card_that_compares_it_with_the_champion(project: Project) -> None:
    reports = project.root / "reports"
    (reports / "filter").mkdir()
    dropped = {"reason": "text_too_short", "num_first": 7, "num_alone": 7, "num_remaining": 30}
    funnel = [{"reason": "opted_out", "num_first": 0, "num_alone": 0, "num_remaining": 37}, dropped]
    (reports / "filter/report.json").write_text(json.dumps({"funnel": funnel, "num_pairs": 37, "num_kept": 30}))
    trained = {"num_training_pairs": 30, "num_training_images": 29}
    (reports / "pretrain/report.json").write_text(json.dumps(trained))
    accepted = {"expectation": "keep-rate", "by": "Ada", "reason": "few | [icons](http://x.example) <b>"}
    (reports / "quality/report.json").write_text(json.dumps({"expectations": [{"accepted": accepted}]}))
    first = project.register()
    project.tracker.registry.set_alias(first.version, "champion")
    project.evaluate(0.7)
    second = project.register(values={"pretrain": VALUES["pretrain"] | {"num_steps": 800}})

    store = client(project)
    card = Path(store.download_artifacts(second.run_id, CARD)).read_text()
    name = project.config.model_name
    described = description(project, second.version.number)
    assert described.startswith(f"# {name}\n") and len(described) <= MAX_DESCRIPTION
    for text in (card, described):
        assert "| concepts | image_to_text/recall@10 | 70.0% | 60.0% to 80.0% | 10.0% | 50.0% |" in text
        assert "champion (version 1)" in text and f"models:/{name}@champion" in text
        assert "30 of 37 pairs passed the filter" in text and "| text_too_short | 7 |" in text
        assert "opted_out" not in text  # it dropped nothing
        assert "policy `policy-diges`" in text
        assert "Trained on 30 pairs of 29 images" in text
        assert r"keep-rate, by Ada: few \| \[icons\](http://x.example) \<b\>" in text
    assert "| `pretrain.num_steps` | 800 | 1,200,000 |" in card
    before = Path(store.download_artifacts(first.run_id, CARD)).read_text()
    assert "champion (version" not in before and "50.0%" in before


def test_a_description_that_is_too_long_ends_with_a_whole_section(project: Project) -> None:
    accepted = [{"accepted": {"expectation": f"rule-{n}", "by": "Ada", "reason": "x" * 60}} for n in range(80)]
    (project.root / "reports/quality/report.json").write_text(json.dumps({"expectations": accepted}))
    done = project.register()
    described = description(project, done.version.number)
    assert "## Use" in described and "## Data" not in described and CARD in described
    assert "rule-79" in Path(client(project).download_artifacts(done.run_id, CARD)).read_text()


def test_the_list_of_runs_opens_with_the_columns_that_matter(project: Project) -> None:
    project.register()
    experiment = client(project).get_experiment(project.experiment())
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{KEY}"])
    assert view["name"] == "ALIGN"
    state = json.loads(view["state"])
    columns = state["selectedColumns"]
    assert [chart["imageKeys"] for chart in state["compareRunCharts"]] == [[key] for key in PICTURES]
    assert len(experiment.tags[f"mlflow.sharedViewState.{KEY}"]) < 5000  # MLflow's limit of a tag
    assert "metrics.`concepts/image_to_text/recall_at_10`" in columns and "params.`pretrain.seed`" in columns
    page = project.tracker.runs_page(project.config.experiment, None)
    address = f"{project.tracker.uri}/#/experiments/{project.experiment()}/runs"
    assert page == f"{address}?workflowType=machine_learning&viewStateShareKey={KEY}"
    assert project.tracker.runs_page("no such experiment", None) is None
