"""From two runs to a search page that follows the champion: a fresh clone, `make up`, and clicks in a real browser.

The pipeline is the real one on the real sample, made small. The first run trains less, so that the second is better.

With ALIGN_PICTURES=FOLDER the pictures of docs/models.md are taken into it:

    ALIGN_PICTURES=docs/img pytest tests/e2e/test_release_in_browser.py
"""

import json
from contextlib import suppress

import pytest

from align.config.params import write_params
from tests.support.browser import open_page
from tests.support.dvc_projects import commit_all
from tests.support.fresh_clone import MORE, Clone
from tests.support.prefect_ui import HEIGHT_PX, WIDTH_PX, Prefect, take

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600)]  # two whole runs, one of 400 steps, within the first test

#: What its owner changes in params.yaml: a person decides, and models that know a hundred pictures may be promoted. In
#: captions these two are equally near to chance; the nearest pictures show that the second has trained for longer.
PARAMS = {
    "promote.approval": True, "promote.metrics": ["classes/knn/accuracy"], "promote.min_times_chance": 0,
    "promote.margin": 0.0, "promote.confidence": 0.5,
}  # fmt: skip
RUNS = {"short": 200, "longer": 400}
#: Columns of the window that MLflow's menu takes, which pictures leave out.
MLFLOW_MENU_PX = 198


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("release") / "a clone")
    write_params(clone.root / "params.yaml", PARAMS)
    commit_all(clone.root, "approval")
    with clone.running():
        yield clone


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("chromium")) as page:
        page.size(WIDTH_PX, HEIGHT_PX)
        yield page


@pytest.fixture(scope="module")
def prefect(clone, page):
    prefect = Prefect(page, clone.prefect)
    prefect.log_in(clone.login)
    for server, login in ((clone.mlflow, clone.login), (clone.search, clone.login_of("login_search"))):
        page.open(server.replace("http://", f"http://{login}@"))  # as a person does once
    return prefect


@pytest.fixture(scope="module")
def runs(clone):
    """Two runs of the pipeline: name -> flow run."""
    found = {}
    for name, steps in RUNS.items():
        found[name] = clone.start({"name": name, "num_steps": steps, "batch_size": 32, "overrides": MORE})
        assert clone.wait_for(found[name], "COMPLETED", "FAILED", "CRASHED", timeout_s=1700) == "COMPLETED"
    return found


def test_two_runs_stand_side_by_side_where_the_printed_link_leads(prefect, runs):
    page = prefect.page
    prefect.read(runs["longer"], "progress")
    link = "[...document.querySelectorAll('main a')].find((link) => link.innerText === 'beside other runs')"
    page.wait(link)
    page.open(page.run(f"{link}.href"))
    shows(page, *RUNS)
    close_assistant(page)
    take(page, "mlflow_runs", 430, MLFLOW_MENU_PX)
    page.size(WIDTH_PX, 900)
    choose(page, "CHART")
    section = "[...document.querySelectorAll('*')].find((e) => !e.children.length && e.innerText === 'retrieval')"
    page.wait(section, 120)
    page.run(f"{section}.scrollIntoView()")  # MLflow draws a section when it comes into view
    pictures = "[...document.querySelectorAll('img')].filter((one) => one.src.includes('retrieval~text_to_image'))"
    page.wait(f"{pictures}.length >= 2 && {pictures}.every((one) => one.naturalWidth > 0)", 120)  # one of each run
    take(page, "mlflow_pictures", 760, MLFLOW_MENU_PX)
    page.size(WIDTH_PX, 900)
    choose(page, "ARTIFACT")
    shows(page, "tables/metrics.json", "classes/zero_shot/accuracy", "by chance 3.7%")
    cells = (
        "[...document.querySelectorAll('*')].filter((e) => !e.children.length && / to .*by chance/.test(e.innerText))"
    )
    page.wait(f"new Set({cells}.map((e) => Math.round(e.getBoundingClientRect().x))).size >= 2")  # a column each
    take(page, "mlflow_tables", 760, MLFLOW_MENU_PX)
    page.size(WIDTH_PX, HEIGHT_PX)


def test_a_version_has_a_card(clone, prefect, runs):
    page = prefect.page
    page.open(f"{clone.mlflow}/#/models/align/versions/2?workflowType=machine_learning")
    shows(page, "Measured", "Use", "pairs passed the filter", "The whole card", "align.git_revision", "candidate")
    close_assistant(page)
    take(page, "mlflow_card", 1000, MLFLOW_MENU_PX)


def test_what_a_person_approves_is_searched_and_what_is_rolled_back_is_not(clone, prefect, runs):
    """Version 1 by a command, so that there is a champion; then all by clicks."""
    said = clone.run("-m", "align.cli", "promote", "--version=1", "--approved-by=Ann", "--because=the first one")
    assert said.returncode == 0, said.stderr
    searched(clone, prefect.page, version=1)

    prefect.page.open(f"{prefect.url}/v2/dashboard")
    run = prefect.quick_run("promote")
    prefect.wait_for_state("Completed", 300)
    decided = prefect.read(run, "promote")
    assert "align version 2: waits for a person's approval" in decided
    assert all(gate in decided for gate in ("lineage", "health alarms", "no slice worse", "smoke prediction"))
    assert "FAILED" not in decided
    searched(clone, prefect.page, version=1)

    approve(prefect)
    searched(clone, prefect.page, version=2)
    take(prefect.page, "search_champion", 620)

    roll_back(prefect)
    searched(clone, prefect.page, version=1)

    history = json.loads(clone.run("-m", "align.cli", "champion", "--json").stdout)
    assert [(move["kind"], move["to"]) for move in history["history"]] == [
        ("promoted", 1), ("promoted", 2), ("rolled back", 1)
    ]  # fmt: skip
    assert history["history"][1]["who"].startswith("Ann, by flow run ")


def approve(prefect):
    """The run that waits, found among the runs, and its form."""
    page = prefect.page
    page.open(f"{prefect.url}/v2/dashboard")
    page.click("Runs")
    link = "[...document.querySelectorAll('main a')].find((link) => link.innerText.startsWith('approve version 2'))"
    page.wait(link)
    page.open(page.run(f"{link}.href"))
    prefect.wait_for_state("Suspended", 120)
    page.click("Open menu", "main button")
    page.click("Resume", "[role=menuitem]")
    page.wait("document.querySelector('[role=dialog] label')")
    page.click("Select", "[role=dialog] button")
    page.click("approve", "[role=option]")
    page.fill("Your name", "Ann")
    page.fill("Why", "it finds more")
    assert page.run("document.querySelector('[role=dialog] .overflow-y-auto').scrollHeight") <= 400  # without its frame
    prefect.picture("prefect_approve", 1000)
    page.click("Resume", "[role=dialog] button")
    page.wait("!document.querySelector('[role=dialog]')")
    prefect.wait_for_state("Completed", 300)


def roll_back(prefect):
    """A run of `rollback`, which asks why."""
    page = prefect.page
    page.open(f"{prefect.url}/v2/dashboard")
    prefect.open_deployment("rollback", "Quick run")
    page.wait("document.querySelector('[role=dialog] label')")
    page.fill("why", "it was a trial")
    page.click("Run", "[role=dialog] button")
    page.click("View run")
    page.wait("location.pathname.includes('/runs/flow-run/')")
    prefect.wait_for_state("Completed", 300)


def searched(clone, page, *, version):
    """The search page says that this version answers, in a tab that looks at it, and pictures come."""
    page.open(f"{clone.search}/?text=flag")
    page.wait(f"document.getElementById('served').innerText.startsWith('Model: align version {version},')", 120)
    page.wait("[...document.querySelectorAll('#results img')].some((image) => image.naturalWidth > 0)")


def shows(page, *words):
    """Waits until a page has all these words."""
    page.wait(f"{json.dumps(words)}.every((one) => document.body.innerText.includes(one))", 120)


def close_assistant(page):
    """MLflow's, which takes a quarter of the window of who has not closed it yet."""
    with suppress(pytest.fail.Exception):
        page.click("Close", "button", 5)


def choose(page, mode):
    """One of the three ways in which MLflow shows runs: TABLE, CHART, and ARTIFACT for tables side by side."""
    page.run(f"document.querySelector('input[name=runs-view-mode][value={mode}]').click()")
