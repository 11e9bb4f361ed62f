"""Texts of strangers in MLflow, wherever a stage may put one: a real browser shows them, and runs none of them."""

import json

import pytest

from align.display.visible import markdown_table, plain_markdown
from align.services.tracking.tracker import Tracker
from tests.support.browser import open_page
from tests.support.mlflow_server import serve
from tests.support.pictures import blurred_png

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

FOREIGN = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>[x](javascript:window.ran=1)${7*7}"\'`|'
MARKDOWN = f"{plain_markdown(FOREIGN)}\n\n{markdown_table(['set'], [[FOREIGN]])}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run and a version with the text in each place."""
    folder = tmp_path_factory.mktemp("foreign")
    report, picture = folder / "report", folder / "picture.png"
    report.mkdir()
    picture.write_bytes(blurred_png(0, (64, 64)))
    (report / "model_card.md").write_text(MARKDOWN)
    (report / "metrics.json").write_text(json.dumps({FOREIGN: [FOREIGN]}))
    with serve(folder / "mlflow") as server:
        tracker = Tracker(server.uri)
        run = tracker.start_run("align", FOREIGN, tags={"align.source": FOREIGN, "mlflow.user": FOREIGN})
        tracker.log_params(run, {"ingest.note": FOREIGN})
        tracker.log_tables(run, {"classes": {"class": [FOREIGN, "b"], "accuracy": ["0.5", FOREIGN]}})
        tracker.log_pictures(run, {"classes/confusion": picture})
        tracker.log_folder(run, report, "reports/evaluation")
        tracker.log_dataset(run, "shards", "a" * 32, FOREIGN)
        tracker.end_run(run)
        tracker.registry.create_version("align", run, "model", {"align.promoted_because": FOREIGN}, MARKDOWN)
        yield tracker, run


def test_mlflow_shows_foreign_texts_and_runs_none(run, tmp_path):
    tracker, number = run
    run_page = tracker.page(number, tracker.uri)
    version = f"{tracker.uri}/#/models/align/versions/1?workflowType=machine_learning"
    places = [run_page, version, *(f"{run_page}/artifacts/{file}" for file in (
        "reports/evaluation/model_card.md", "reports/evaluation/metrics.json", "tables/classes.json",
    ))]  # fmt: skip
    with open_page(tmp_path) as page:

        def shows(count=1):
            page.wait(f"document.body.innerText.split('window.ran=1').length > {3 * count}", 60)
            assert page.run("window.ran") is None, page.run("location.href")

        for place in places:
            page.ask("Page.navigate", url="about:blank")  # another address of one page would keep the last text
            page.open(place)
            shows()
        page.open(tracker.runs_page("align", tracker.uri))
        for mode in ("TABLE", "CHART", "ARTIFACT"):
            button = f"document.querySelector('input[name=runs-view-mode][value={mode}]')"
            page.wait(button)
            page.run(f"{button}.click()")
            shows()
        page.run("document.body.innerHTML = '<img src=x onerror=\"window.ran=1\">'")
        page.wait("window.ran === 1")  # what does run is seen
