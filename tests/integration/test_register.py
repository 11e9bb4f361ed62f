"""Runs, versions and aliases in a real MLflow, a server or a file: what people see of them, and who opens them."""

import json
import subprocess
from pathlib import Path

import mlflow
import pytest
import urllib3
from PIL import Image

from align.errors import CorruptError, DataError, GateError, ServiceError
from align.formats.model_folder import Imported, model_digest, read_config, read_weights, write_model_folder
from align.python.models import load
from align.release.packaging.packaged_model import save
from align.release.promotion.gates import verdict
from align.release.registration.dataset_card import CROISSANT, SOURCES
from align.release.registration.model_card import CARD, MAX_DESCRIPTION
from align.release.registration.register import Origin, register
from align.release.registration.shown import all_metrics, headline, log_report
from align.services.signing import SIGN_WITH, SIGNATURE_DIGEST, TRUST, require_signed
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker, metric_name
from tests.support import ROOT, registered, small_data, tiny_model, wait_until
from tests.support.registered import VALUES
from tests.support.signing_keys import write_keys

LOSS = "pretrain/train/loss"


@pytest.fixture
def project(tmp_path, mlflow_server):
    return registered.write(tmp_path, mlflow_server)


def client(project):
    return mlflow.MlflowClient(project.tracker.uri, project.tracker.uri)


def test_a_run_has_params_figures_curves_reports_and_the_version_its_lineage(project):
    (project.root / "reports/pretrain/metrics.json").write_text(json.dumps({LOSS: 2.0, "pretrain/num_steps": 30}))
    done = project.register()
    run = client(project).get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"pretrain.lr": "0.001", "pretrain.crop": "[1, 2]"}
    assert run.data.metrics["concepts/image_to_text/recall_at_10"] == 0.5
    assert "shard/num_images" not in run.data.metrics
    assert all_metrics(project.tracker, done.run_id)["shard/num_images"] == 30
    assert len(run.data.metrics) <= 40
    written = {
        metric_name(name): value
        for file in project.root.glob("reports/*/metrics.json")
        for name, value in json.loads(file.read_text()).items()
    }
    assert written.items() <= all_metrics(project.tracker, done.run_id).items()  # with intervals and chance
    history = client(project).get_metric_history(done.run_id, LOSS)
    assert [(point.step, point.value) for point in history] == [(10, 4.0), (20, 3.0), (30, 2.0)]  # no end at step 0
    assert "pretrain/num_steps" not in run.data.metrics  # a row of the table
    assert run.data.metrics["pretrain/val/image_to_text/recall_at_1"] == 0.3
    assert [item.path for item in client(project).list_artifacts(done.run_id, "reports/evaluation")] == [
        "reports/evaluation/metrics.json",
        "reports/evaluation/ranks.parquet",
        "reports/evaluation/report.html",
        "reports/evaluation/report.json",
    ]
    assert run.inputs.dataset_inputs[0].dataset.name == "shards"
    assert run.data.tags["cached_stages"] == "ingest, filter"
    version = client(project).get_model_version_by_alias(project.config.model_name, "candidate")
    assert version.run_id == done.run_id
    report = json.loads((project.root / "reports" / "package" / "report.json").read_text())
    manifest = json.loads((project.root / "shards" / "manifest.json").read_text())
    assert version.tags == {
        "align.git_revision": "0123abc",
        "align.dvc_lock": "lock-digest",
        "align.flow_run": "flow-1",
        "align.quality": "passed",
        "align.policy_digest": "policy-digest",
        "align.evaluation_digest": "d" * 64,
        "align.model_digest": report["digest"],
        "align.data_digest": manifest["digest"],
        "align.trained_on": "nothing",
    }
    page = f"{project.tracker.uri}/#/experiments/{project.experiment()}/runs?workflowType=machine_learning"
    assert project.tracker.runs_page(project.config.experiment, None) == page
    assert project.tracker.runs_page("no such experiment", None) is None


def test_with_a_trusted_key_only_signed_models_are_promoted(project, tmp_path, monkeypatch):
    registry, model = project.tracker.registry, project.config.model_name
    (private, public), (foreign, _) = write_keys(tmp_path), write_keys(tmp_path, "foreign")
    unsigned = project.register().version
    monkeypatch.setenv(TRUST, str(public))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptError, match=f"^{model} version 1: there is no signature"):
        project.promote()
    monkeypatch.setenv(SIGN_WITH, str(foreign))
    project.register()
    with pytest.raises(CorruptError, match=f"^{model} version 1: its signature does not hold"):
        project.promote()
    monkeypatch.setenv(SIGN_WITH, str(private))
    signed = project.register()
    assert (signed.created, signed.version.number) == (False, 1)  # the model is the same; it gets its signature
    (version,) = registry.versions(model)
    assert version.tags == unsigned.tags | {SIGNATURE_DIGEST: version.tags[SIGNATURE_DIGEST]}
    require_signed(registry, version)
    (tmp_path / "MLmodel").write_text("planted")
    client(project).log_artifact(version.run_id, str(tmp_path / "MLmodel"), "model")
    with pytest.raises(CorruptError, match=rf"^{model} version 1: its signature does not hold .*MLmodel"):
        project.promote()
    assert project.aliases() == {"candidate": 1}


def test_a_version_says_what_trained_it_and_where_it_was_imported_from(project):
    folder = project.root / "models" / "finetuned"
    config = read_config(folder)
    source = Imported(folder="align-base", weights="b" * 64)
    for imported, trained_on, expected in (
        (source, (), "nothing"),
        (None, ("a" * 64, "c" * 64), f"{'a' * 64}, {'c' * 64}"),
        (None, ("a" * 64,) * 76, ", ".join([*["a" * 64] * 75, "unknown"])),  # a tag has room for no more
    ):
        changed = config.model_copy(update={"imported": imported, "trained_on": trained_on})
        write_model_folder(changed, read_weights(folder), folder)
        project.evaluate(0.5)
        tags = project.register().version.tags
        assert tags["align.trained_on"] == expected
        assert tags.get("align.imported_from") == (imported and "align-base")
        assert tags.get("align.imported_weights") == (imported and "b" * 64)


def test_a_model_of_tars_that_others_made_is_registered_as_not_gated_and_claims_no_chain(project):
    folder = project.root / "models" / "finetuned"
    config, weights = read_config(folder), read_weights(folder)
    shards = json.loads((project.root / "shards" / "manifest.json").read_text())["digest"]
    for trained_on, data in ((("a" * 64,), "a" * 64), (("a" * 64, shards), shards)):
        changed = config.model_copy(update={"trained_on": trained_on, "not_gated": ("a" * 64,)})
        write_model_folder(changed, weights, folder)
        project.evaluate(0.5)
        done = project.register()
        tags, run = done.version.tags, client(project).get_run(done.run_id)
        assert (tags["align.quality"], tags["align.not_gated"], tags["align.data_digest"]) == (
            "not gated", "a" * 64, data,
        )  # fmt: skip
        assert run.data.tags["align.quality"] == "not gated"
        card = client(project).get_model_version(project.config.model_name, str(done.version.number)).description
        assert "Not gated: no rule, and no gate, has seen aaaaaaaaaaaa" in card
        saw_shards = data == shards  # it was fine-tuned on them, and they have passed their gates
        assert ("The quality gates passed" in card) == saw_shards
        reports = {path.path for path in client(project).list_artifacts(done.run_id, "reports")}
        assert ("reports/shard" in reports) == ("reports/quality" in reports) == saw_shards
        assert not verdict(done.version).passed


@pytest.mark.parametrize("gate", ["quality", "quality_shards"])
def test_data_that_a_gate_refused_or_never_saw_is_not_registered(project, gate):
    folder = project.root / "reports" / gate
    small_data.write_verdict(folder, passed=False, data=json.loads((folder / "verdict.json").read_bytes())["data"])
    with pytest.raises(GateError, match="the quality gate failed"):
        project.register()
    small_data.write_verdict(folder, passed=True, data="f" * 64)
    with pytest.raises(DataError, match=rf"about other data than {project.root / 'shards'}; run `align validate"):
        project.register()


@pytest.mark.parametrize(("changes", "message"), [
    ({"decisions": "e" * 64}, r"quality/verdict\.json: this verdict is about other data than .*shards; run"),
    ({"digest": "e" * 64}, r"reports/shard: is about other shards than .*shards; run `align shard` with the same"),
])  # fmt: skip
def test_a_verdict_counts_only_for_the_decisions_that_the_shards_were_made_from(project, changes, message):
    path = project.root / "reports/shard/report.json"
    report = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(report))
    with pytest.raises(DataError, match=message):
        project.register()


def test_the_same_model_is_the_same_version_and_the_same_results_the_same_run(project):
    first = project.register()
    tags = client(project).get_run(first.run_id).data.tags
    cached = Origin("4567def", "another-lock", "flow-2", cached_stages=("ingest", "pretrain", "package"))
    again = register(
        project.config,
        project.outputs,
        VALUES,
        origin=cached,
        tracker=project.tracker,
        run_id=None,
        outlook=registered.outlook,
    )
    assert client(project).get_run(first.run_id).data.tags == tags  # of the run that trained
    assert (first.created, again.created) == (True, False)
    assert again.version.number == first.version.number == 1
    assert again.run_id == first.run_id
    assert len(client(project).get_metric_history(first.run_id, LOSS)) == 3
    assert len(client(project).get_metric_history(first.run_id, "concepts/image_to_text/recall_at_10")) == 1
    other = project.candidate(0.6)
    assert other == 2
    assert project.aliases() == {"candidate": 2}
    project.evaluate(0.5)
    back = project.register()
    assert (back.created, back.version.number, back.run_id) == (False, 1, first.run_id)
    assert project.aliases() == {"candidate": 1}


def test_only_a_value_that_changes_bytes_makes_another_run(project):
    first = project.register()
    for same in ({"health": {"price_per_hour": 2.5}}, {"cluster": {"num_nodes": 4}}, {"promote": {"margin": 0.5}}):
        assert project.register(values=same).run_id == first.run_id
    assert len(client(project).search_runs([project.experiment()])) == 1
    other = project.register(values={"pretrain": VALUES["pretrain"] | {"seed": 1}})
    assert other.run_id != first.run_id
    assert other.version.number == first.version.number  # the model is the same


def test_an_empty_mlflow_is_filled_again_without_a_server(project, monkeypatch):
    project.register()
    monkeypatch.chdir(project.root)
    file = Tracker()
    assert file.uri == "sqlite:///mlflow.db"
    done = project.register(tracker=file)
    assert (done.created, done.version.number) == (True, 1)
    assert (
        project.root / "mlartifacts" / project.config.experiment / done.run_id / "artifacts" / "model" / "MLmodel"
    ).is_file()


def test_what_is_complete_is_left_alone_and_what_is_missing_is_completed(project, monkeypatch, empty_mlflow):
    empty_mlflow(project.root)
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = project.register_again()
    file, client = Tracker(), mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    again = project.register_again()
    assert (again.created, again.run_id, again.version.number) == (False, first.run_id, first.version.number)
    assert again.mlflow == file.uri
    for damage in (
        lambda: client.delete_registered_model_alias(project.config.model_name, "candidate"),
        lambda: file.set_tags(first.run_id, {"align.run_digest": "another"}),
    ):
        damage()
        project.register_again()
    assert file.registry.aliases(project.config.model_name) == {"candidate": 1}
    assert len(file.runs()) == 2  # the one whose digest was changed stays


def test_a_run_that_a_caller_started_is_completed_and_not_ended(project):
    run_id = project.tracker.start_run(project.config.experiment, "the flow's")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", project.tracker.uri)
        with LiveLog(run_id, "pretrain") as logger:
            logger({"train/loss": 4.0}, 10)
            logger({"train/loss": 3.0}, 20)
    for _ in range(2):
        assert project.register(run_id).run_id == run_id
    run = client(project).get_run(run_id)
    assert run.info.status == "RUNNING"
    history = client(project).get_metric_history(run_id, "pretrain/train/loss")
    assert sorted((point.step, point.value) for point in history) == [(10, 4.0), (20, 3.0), (30, 2.0)]


def test_a_changed_model_folder_is_an_error(project):
    (project.root / "packaged" / "evaluation.json").write_text("{}")
    with pytest.raises(CorruptError, match="run `align package` again"):
        project.register()


def test_an_unavailable_server_is_one_error_after_three_attempts(project, monkeypatch):
    attempts = []
    connect = urllib3.util.connection.create_connection

    def counted(address, *arguments, **more):
        attempts.append(address)
        return connect(address, *arguments, **more)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", counted)
    with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9: .*`make up`") as caught:
        project.register(tracker=Tracker("http://user:secret@127.0.0.1:9"))
    assert attempts == [("127.0.0.1", 9)] * 3  # by MLflow's own settings 8, in four minutes
    assert "secret" not in str(caught.value)


def test_mlflow_gets_no_secret_of_the_environment(project, monkeypatch, empty_mlflow):
    monkeypatch.chdir(project.root)
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "remote", "add", "origin", "https://planted-token@git.example/align.git"], check=True)
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, f"planted-{name}")
    project.evaluate(0.5)
    project.register(tracker=Tracker(empty_mlflow(project.root)))
    files = [path for path in project.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert {"mlflow.db", "MLmodel"} <= {path.name for path in files}
    assert [path for path in files if b"planted-" in path.read_bytes()] == []


def test_pictures_and_tables_are_shown_once_under_fixed_names(project):
    for name in ("same_text_to_image", "same_image_to_text", "recall"):
        Image.new("RGB", (60, 40), "navy").save(project.root / f"reports/evaluation/{name}.png")
    (project.root / "reports/evaluation/report.json").write_text(
        json.dumps({"evaluation_digest": "d", "classes": {"drawings": {"fox": {"num_images": 4, "accuracy": 0.25}}}})
    )
    run = project.tracker.start_run(project.config.experiment, "the flow's")
    for _ in range(2):  # a retry of `align register` shows nothing twice
        project.register(run)
    files = [file.path for file in client(project).list_artifacts(run, "images")]
    keys = sorted(path.removeprefix("images/").split("+")[0] for path in files if path.endswith(".png"))
    assert keys == ["retrieval~image_to_text", "retrieval~recall", "retrieval~text_to_image"]
    measured, *others = table(project, run, "metrics")
    assert {row["measure"]: row["value"] for row in others}["shard/num_images"] == 30
    assert [measured] == [
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
    assert {"path": "tables/metrics.json", "type": "table"} in shown


def table(project, run, name):
    """The rows of a table that MLflow shows."""
    stored = json.loads(Path(client(project).download_artifacts(run, f"tables/{name}.json")).read_text())
    return [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]]


def description(project, version):
    """What the registry's page of a version says."""
    return client(project).get_model_version(project.config.model_name, str(version)).description or ""


def test_a_version_has_a_card_that_compares_it_with_the_champion(project):
    reports = project.root / "reports"
    (reports / "filter").mkdir()
    dropped = {"reason": "text_too_short", "num_first": 7, "num_alone": 7, "num_remaining": 30}
    funnel = [{"reason": "opted_out", "num_first": 0, "num_alone": 0, "num_remaining": 37}, dropped]
    (reports / "filter/report.json").write_text(json.dumps({"funnel": funnel, "num_pairs": 37, "num_kept": 30}))
    trained = {"num_training_pairs": 30, "num_training_images": 29}
    (reports / "pretrain/report.json").write_text(json.dumps(trained))
    accepted = {"expectation": "keep-rate", "by": "Ada", "reason": "few | [icons](http://x.example) <b>"}
    expectations = [{"accepted": None}, {"accepted": accepted}]
    (reports / "quality/report.json").write_text(json.dumps({"expectations": expectations}))
    first = project.register()
    assert first.version.tags["align.quality_accepted"] == f"keep-rate, by Ada: {accepted['reason']}"
    project.tracker.registry.set_alias(first.version, "champion")
    project.evaluate(0.7)
    second = project.register(values={"pretrain": VALUES["pretrain"] | {"num_steps": 800}})

    store = client(project)
    card = Path(store.download_artifacts(second.run_id, CARD)).read_text()
    name = project.config.model_name
    described = description(project, second.version.number)
    assert described.startswith("**concepts/image_to_text/recall@10 70.0%; ") and len(described) <= MAX_DESCRIPTION
    assert described.partition("\n")[0].endswith("; better than champion 0; version 2 would be promoted.**")
    for text in (card, described):
        assert "| concepts | image_to_text/recall@10 | 70.0% | 60.0% to 80.0% | 10.0% | 50.0% |" in text
        assert "champion (version 1)" in text and f'load_model("models:/{name}/2")' in text
        assert f"## {name}\n\nPromote it with `align promote --version 2`" in text
        assert "30 of 37 pairs passed the filter" in text and "| text_too_short | 7 |" in text
        assert "opted_out" not in text  # it dropped nothing
        assert "policy `policy-diges`" in text
        assert "Trained on 30 pairs of 29 images" in text
        assert r"keep-rate, by Ada: few \| \[icons\](http://x.example) \<b\>" in text
    assert "| `pretrain.num_steps` | 800 |" in card
    assert "30 of 37" in Path(store.download_artifacts(second.run_id, SOURCES)).read_text()
    assert json.loads(Path(store.download_artifacts(second.run_id, CROISSANT)).read_bytes())["name"] == name
    before = Path(store.download_artifacts(first.run_id, CARD)).read_text()
    assert "champion (version" not in before and "50.0%" in before


def test_a_description_that_is_too_long_ends_with_a_whole_section(project):
    accepted = [{"accepted": {"expectation": f"rule-{n}", "by": "Ada", "reason": "x" * 60}} for n in range(80)]
    (project.root / "reports/quality/report.json").write_text(json.dumps({"expectations": accepted}))
    done = project.register()
    described = description(project, done.version.number)
    assert "## Use" in described and "## Data" not in described and CARD in described
    assert "rule-79" in Path(client(project).download_artifacts(done.run_id, CARD)).read_text()


def test_a_report_is_logged_once_as_soon_as_its_stage_has_ended(project):
    store, run = client(project), project.tracker.start_run(project.config.experiment, "the flow's")
    for _ in range(2):  # the flow, and `align register` after it
        for stage in ("shard", "pretrain", "evaluation", "package"):
            log_report(
                project.tracker, run, project.root / "reports" / stage, headline(VALUES), project.root / "shards"
            )
    assert len(store.get_metric_history(run, "pretrain/train/loss")) == 3
    logged = store.get_run(run)
    assert [one.dataset.name for one in logged.inputs.dataset_inputs] == ["shards"]
    assert logged.data.metrics["concepts/image_to_text/recall_at_10"] == 0.5


def test_what_the_machine_does_is_logged_while_a_run_works(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    run, key = project.tracker.start_run(project.config.experiment, "the flow's"), "system/cpu_utilization_percentage"
    for attempt in (1, 2):  # a retry continues the curve
        with project.tracker.watched(run):
            wait_until(lambda: project.tracker.last_steps(run).get(key, -1) >= attempt)  # noqa: B023
    steps = [point.step for point in client(project).get_metric_history(run, key)]
    assert steps == list(range(len(steps))) and len(steps) >= 3


def test_a_version_by_alias_and_by_number(tmp_path, monkeypatch, empty_mlflow):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    tracker = Tracker()
    models = [tiny_model.write(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    for model in models:
        packaged = model.parent / "packaged"
        save(packaged, model=model, code=ROOT / "align" / "model", metadata={})
        run = tracker.start_run("align", model.parent.name)
        tracker.log_folder(run, packaged, "model")
        version = tracker.registry.create_version("align", run, "model", {})
    tracker.registry.set_alias(version, "champion")
    champion = load("models:/align@champion")
    assert (champion.name, champion.digest) == ("align-champion", model_digest(models[1]))
    assert load("models:/align/1").digest == model_digest(models[0])
    for source in ("models:/align@previous", "models:/align/3", "models:/other@champion"):
        with pytest.raises(DataError, match=f"{source}: no such version in MLflow"):
            load(source)
