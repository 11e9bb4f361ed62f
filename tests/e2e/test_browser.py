"""A person's first hour with the UI: a fresh clone, `make up`, and everything else by clicks in a real browser.

The pipeline is the real one on the real sample, made small by values that are typed into the form. Prefect 3.9 has two
UIs; driven is the newer one, which `make up`'s address opens, and the older one is looked at.

With ALIGN_PICTURES=FOLDER the pictures of docs/operations.md are taken into it:

    ALIGN_PICTURES=docs/img pytest tests/e2e/test_browser.py
"""

import json
import re

import pytest

from align.services.git import git
from tests.support import wait_until
from tests.support.browser import open_page
from tests.support.fresh_clone import MORE, Clone
from tests.support.prefect_ui import HEIGHT_PX, WIDTH_PX, Prefect, take

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]  # the whole pipeline runs within the first tests

STEPS, BATCH = 800, 32
#: Columns of the window that MLflow's menu takes, which pictures leave out.
MLFLOW_MENU_PX = 198
#: The pipeline's stages, as the page of a run lists them.
STAGES = (
    "ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer", "pretrain", "finetune", "evaluate",
    "index", "package",
)  # fmt: skip
STEP = re.compile(r"stage 7 of 11, pretrain: step ([\d,]+) of ")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("browser") / "a clone")
    with clone.running():
        yield clone


@pytest.fixture(scope="module")
def prefect(clone, tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("chromium")) as page:
        page.size(WIDTH_PX, HEIGHT_PX)
        printed = re.search(r"^Prefect +(\S+)", clone.said, re.M)
        assert printed, clone.said
        prefect = Prefect(page, printed[1])
        prefect.log_in(clone.login)
        yield prefect


def test_a_wrong_value_is_refused_by_the_form(clone, prefect):
    page = prefect.page
    prefect.open_form()
    page.fill("Run Name", "wrong")
    page.fill("Steps", "-5")
    page.click("Submit")
    page.wait("document.activeElement.validationMessage === 'Value must be greater than or equal to 1.'")
    page.run("((field) => { field.scrollIntoView({block: 'center'}); field.reportValidity() })(document.activeElement)")
    prefect.picture("prefect_refused", rows=480)
    page.fill("Steps", "700")
    page.fill("More parameters", json.dumps({"paths.archive": "https://me:secret@host/crawl.paths"}))
    page.click("Submit")
    page.wait("document.body.innerText.includes(\"request.overrides['paths.archive']\")")
    assert clone.ask("/flow_runs/count", {}) == 0


def test_a_run_is_started_watched_cancelled_and_resumed(clone, prefect):
    page = prefect.page
    prefect.open_form()
    page.fill("Run Name", "trial")
    page.fill("Steps", str(STEPS))
    page.fill("Batch size", str(BATCH))
    page.fill("More parameters", json.dumps(MORE))
    prefect.picture("prefect_form", 1850)
    run = prefect.submit()
    prefect.wait_for_state("Running")
    wait_until(lambda: "trial" in page.text("main").split("\n")[:4], 30)

    plan = prefect.read(run, "plan")
    assert f"{STEPS:,} steps of {BATCH}: {STEPS * BATCH:,} pairs" in plan and "it has not run here yet" in plan
    prefect.picture("prefect_plan", 1250)
    seen = watch_steps(prefect, run)
    assert prefect.artifacts(run).keys() == {"plan", "progress"}
    prefect.picture("prefect_running", 840)
    page.open(f"{prefect.url}/v2/runs/flow-run/{run}")
    page.click("Subflow Runs")
    links = "[...document.querySelectorAll('main a[href*=\"/runs/flow-run/\"]')]"
    part = f"{links}.find((a) => a.innerText.startsWith('training of '))"
    page.wait(part)
    page.open(page.run(f"{part}.href"))
    page.wait("document.querySelector('main').innerText.includes('> align pretrain')", 30)

    page.open(f"{prefect.url}/v2/runs/flow-run/{run}")
    prefect.wait_for_state("Running")
    prefect.menu("Cancel", "Cancel Flow Run")
    prefect.wait_for_state("Cancelled", 120)
    ended = prefect.read(run, "progress")
    reached = STEP.search(ended)
    assert reached and int(reached[1].replace(",", "")) >= seen and "ended at stage 7 of 11" in ended

    page.open(f"{prefect.url}/v2/runs/flow-run/{run}")
    prefect.wait_for_state("Cancelled")
    prefect.picture("prefect_cancelled", rows=506)
    prefect.menu("Retry", "Retry")
    prefect.wait_for_state("Running", 120)
    wait_until(lambda: any("resuming from step" in line for line in clone.logs(run)), pause_s=2)
    states = clone.states("trial")
    assert {states[stage] for stage in STAGES[:6]} == {"Cached"} and states["pretrain"] == "Running"
    resumed = re.search(r"pretrain: resuming from step ([\d,]+) in", "\n".join(clone.logs(run)))
    assert resumed and int(resumed[1].replace(",", "")) >= seen > 0
    assert "stale" in prefect.read(run, "plan")
    prefect.page.open(f"{prefect.url}/v2/runs/flow-run/{run}")
    prefect.wait_for_state("Completed", 1200)
    page.open(f"{prefect.url}/v2/runs/flow-run/{run}")  # again: its tag came with its end
    prefect.wait_for_state("Completed")
    prefect.picture("prefect_run", rows=506)
    look_around(clone, prefect, run)
    the_older_ui_shows_the_same(clone, prefect, run)


def test_two_runs_are_compared_in_mlflow(clone, prefect):
    """A second run, with another rate of fine-tuning, and the pages on which both are compared."""
    more = MORE | {"finetune.learning_rate": 1e-4}
    second = clone.start({"name": "gentle", "num_steps": STEPS, "batch_size": BATCH, "overrides": more})
    assert clone.wait_for(second, "COMPLETED", "FAILED", "CRASHED", timeout_s=2400) == "COMPLETED"
    found = clone.ask(f"{clone.mlflow}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"], "max_results": 10})
    runs = [one["info"]["run_id"] for one in found["runs"] if one["info"]["status"] == "FINISHED"][:2]
    page = prefect.page
    page.open(clone.mlflow.replace("http://", f"http://{clone.login}@"))
    question = f"runs={json.dumps(runs)}&experiments={json.dumps(['1'])}".replace('"', "%22")
    page.open(f"{clone.mlflow}/#/compare-runs?{question}")
    page.wait("document.body.innerText.includes('learning_rate')")
    page.click("Close")  # its assistant
    page.click("Visualizations", "[role=button]")
    for part in ("Parameters", "Metrics"):
        page.click(f"{part} - Show diff only")
    page.run("document.querySelectorAll('*').forEach((part) => { part.scrollTop = 0 })")
    take(page, "mlflow_compare", 1000, MLFLOW_MENU_PX)
    page.open(f"{clone.mlflow}/#/models/align/versions/2")
    page.wait("document.body.innerText.includes('align.git_revision')")
    take(page, "mlflow_model", 860, MLFLOW_MENU_PX)


def watch_steps(prefect, run):
    """Looks at the progress until it has moved twice in pre-training; the last step that was seen."""
    seen = []

    def moved():
        if found := STEP.search(prefect.read(run, "progress")):
            step = int(found[1].replace(",", ""))
            seen.extend([step] if step not in seen else [])
        return len(seen) == 2

    wait_until(moved, 600, pause_s=2)
    assert seen[0] < seen[1] < STEPS and re.search(r"Progress: [\d.]+%", prefect.page.text("main"))
    return seen[-1]


def look_around(clone, prefect, run):
    """All artifacts of a run that has ended, and the report of each stage."""
    page = prefect.page
    assert prefect.artifacts(run).keys() == {"plan", "progress", "summary"}
    assert "Progress: 100%" in prefect.read(run, "progress")
    summary = prefect.read(run, "summary")
    assert "Run 'trial', recorded as branch run/trial" in summary and "Retrieval, fine-tuned (chance):" in summary
    text = prefect.read(run, "progress")
    assert "branch: run/trial (" in text and "registered: " in text and "version 1" in text
    address = page.run("location.href")
    found = clone.ask("/artifacts/filter", {"sort": "CREATED_DESC", "limit": 200})
    ids = {one["key"]: one["id"] for one in reversed(found) if one["key"]}
    reports = [f"{address.rpartition('/')[0]}/{ids[stage.replace('_', '-') + '-report']}" for stage in STAGES]
    for stage, report in zip(STAGES, reports, strict=True):
        page.open(report)
        page.wait(f"document.querySelector('main h1')?.innerText === {json.dumps(stage)}")
        prefect.artifact()
        images = "[...document.querySelectorAll('main img[src]')]"
        page.wait(f"{images}.length >= {int(stage in ('pretrain', 'evaluate'))}")
        page.wait(f"{images}.every((image) => image.naturalWidth > 0)")
        if stage == "evaluate":
            page.run(f"{images}[0].scrollIntoView({{block: 'end'}})")
            prefect.picture("prefect_report")
    page.open(address)
    # the page is drawn twice as it comes, so what was found is kept
    page.wait("found = [...document.querySelectorAll('main a')].find((link) => link.innerText === 'MLflow')?.href")
    link = page.run("found")
    assert link.startswith(f"{clone.mlflow}/#/experiments/")
    assert git(clone.root, "rev-parse", "run/trial")[:10] in text


def the_older_ui_shows_the_same(clone, prefect, run):
    """The form and the page of the run."""
    page = prefect.page
    page.open(f"{prefect.url}/runs/flow-run/{run}")
    page.wait("['trial', 'Completed'].every((words) => document.body.innerText.includes(words))")
    assert page.run("location.pathname").startswith("/runs/")
    deployment = clone.ask("/deployments/name/pipeline/train-and-release")["id"]
    page.open(f"{prefect.url}/deployments/deployment/{deployment}/run")
    page.wait("['Name', 'Steps', 'More parameters'].every((words) => document.body.innerText.includes(words))")
