"""What people read of a run: its summary and the reports of its stages."""

import base64
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from flows.checkout.run_branch import Recorded
from flows.dag import Selection, Stage, read_dag
from flows.pages.index import write_index
from flows.pages.report import report_markdown
from flows.pages.summary import summarise
from flows.run.context import RunContext, StageOutcome
from flows.stage import did_run
from tests.support import ROOT


def test_did_run_by_dvc_s_words():
    assert did_run("filter", ["Running stage 'filter':", "> align filter"])
    assert not did_run("filter", ["Stage 'filter' is cached - skipping run, checking out outputs"])
    assert not did_run("filter", ["Stage 'filter' didn't change, skipping", "Running stage 'filters':"])


RECORDED = Recorded("demo", "0" * 40, is_new=True)


def stage(name):
    return Stage(name, f"what {name} does", "data", (), (), (), f"reports/{name}")


def report(root, name, metrics, **content):
    folder = root / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report.json").write_text(json.dumps(content))


def test_the_index_says_which_run_it_is_and_leads_to_every_page(tmp_path):
    for name in ("ingest", "quality"):
        report(tmp_path, name, {"a/keep_rate": 0.619, "a/b": 2})
        (tmp_path / "reports" / name / "report.html").write_text("")
    (tmp_path / "reports/quality/verdict.json").write_text('{"passed": true}')
    stages = tuple(replace(stage(name), figures=("*/keep_rate", "<b>")) for name in ("ingest", "quality", "package"))
    run = RunContext(root=tmp_path, checkout=tmp_path, name="demo", chosen=Selection(asked=stages))
    run = run.model_copy(update={"mlflow_page": "http://127.0.0.1:5000/#/run"})
    write_index(run, RECORDED, "align version 3")
    page = (tmp_path / "reports/index.html").read_text()
    assert "Run demo, commit 000000000000, 20" in page and "UTC: align version 3</p>" in page
    assert re.findall('href="([^"]+)/report.html">', page) == ["ingest", "quality"]
    assert '<a href="quality/report.html">quality</a>: what quality does. <b>Passed.</b>' in page
    assert ">a/keep_rate 61.9%<" in page and 'href="http://127.0.0.1:5000/#/run">This run in MLflow' in page


def test_the_summary_reads_the_reports(tmp_path):
    report(tmp_path, "ingest", {"ingest/num_pairs": 1000})
    report(tmp_path, "filter", {"filter/num_kept": 600, "filter/dropped/text_too_short": 300, "filter/dropped/x": 0})
    recalls = {f"concepts/image_to_text/recall@{k}": k / 20 for k in (1, 5, 10)}
    chances = {f"{name}/chance": 0.02 for name in recalls}
    zero_shot = {
        "classes/zero_shot/accuracy": 0.2,
        "classes/zero_shot/accuracy/chance": 0.04,
        "classes/zero_shot/accuracy/majority": 0.1,
    }
    report(tmp_path, "evaluate", recalls | chances | zero_shot)
    found = [{"score": 0.5, "right": True, "texts": ["a red heart"]}]
    report(tmp_path, "index", {}, queries=[{"query": f"query {i}", "found": found} for i in range(5)])
    stages = [stage(name) for name in ("ingest", "filter", "evaluate", "index")]
    outcomes = [StageOutcome(stage=s.name, ran=s.name == "filter") for s in stages]
    run = RunContext(root=tmp_path, checkout=tmp_path, name="demo", chosen=Selection(asked=tuple(stages)))
    text = summarise(run, outcomes, RECORDED, "align version 3")
    assert "1 stages ran (filter), 3 came from the cache" in text
    assert "1,000 in, 600 kept (60.0%)" in text and "300  text_too_short" in text
    assert "  x" not in text.split("Retrieval")[0]  # rules that dropped nothing are left out
    row = next(line for line in text.splitlines() if "concepts/image_to_text" in line)
    assert row.split()[1:] == ["5.0%", "(2.0%)", "25.0%", "(2.0%)", "50.0%", "(2.0%)"]
    assert "Zero-shot accuracy (classes): 20.0%; chance 4.0%, majority rate 10.0%" in text
    assert "align version 3" in text and "align compare demo ." in text and "dvc metrics diff" not in text
    assert text.count("red heart") == 3  # three examples
    assert 'align search "query 0" --html hits.html' in text

    assert summarise(run, outcomes, RECORDED, "version 3", ["a warning", "a verdict"]).endswith(
        "\n\na warning\na verdict"
    )

    report(tmp_path, "index", {}, queries=[])  # of a project that has no labelled queries yet
    text = summarise(run, outcomes, RECORDED, "align version 3")
    assert 'align search "your words" --html hits.html' in text and "Searches:" not in text


def test_the_summary_says_how_to_activate_the_environment(tmp_path, monkeypatch):
    report(tmp_path, "evaluate", {})

    run = RunContext(root=tmp_path, checkout=tmp_path, name="a b", chosen=Selection(asked=(stage("evaluate"),)))

    def look_around():
        text = summarise(run, [], Recorded("a b", "0", is_new=True), "")
        return text.split("Look around:\n")[1].splitlines()

    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert look_around()[0].startswith("  . .venv/bin/activate  ")
    assert "  align compare 'a b' .  " in "\n".join(look_around())
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "other"))
    assert look_around()[0].startswith("  . .venv/bin/activate  ")
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert look_around()[0].startswith("  make up  ")
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # installed without an environment
    assert look_around()[0].startswith("  make up  ")


def test_a_report_shows_metrics_and_pictures(tmp_path):
    report(tmp_path, "filter", {"filter/num_kept": 1234, "filter/keep_rate": 0.5, "[x](http://x) | y": 2})
    (tmp_path / "reports/filter/funnel.png").write_bytes(b"\x89PNG")
    text = report_markdown(tmp_path / "reports/filter", stage("filter"), "~~~~\n<b>")
    assert text.count("~~~~") == 2 and r"| \[x\](http://x) \| y | 2 |" in text
    assert "| filter/num_kept | 1,234 |" in text and "| filter/keep_rate | 50.0% |" in text
    assert "![funnel](data:image/png;base64,iVBORw==)" in text


def test_a_report_begins_with_its_verdict_and_main_figures(tmp_path):
    """The main plot, not the first by name; where the whole is; and all metrics at the end."""
    recall = {"b/recall@1": 0.25, "b/recall@1/low": 0.2, "b/recall@1/chance": 0.1}
    low = {"a/b/recall@1": 0.3, "a/b/recall@1/low": 0.05, "a/b/recall@1/chance": 0.1}
    report(tmp_path, "evaluate", {**low, **recall, "num_sets": 1234})
    folder = tmp_path / "reports/evaluate"
    for name in ("confusion.png", "recall.png", "report.html"):
        (folder / name).write_bytes(b"\x89PNG")
    shown = replace(stage("evaluate"), figures=("*/recall@1", "num_*", "missing/*"), plot="recall.png")
    text = report_markdown(folder, shown, address="http://127.0.0.1:5000/#/runs/1/artifacts/report.html?x")
    order = [
        "**1 of 2 measures are above chance", "| b/recall@1 | 25.0% | 10.0% |\n| num_sets | 1,234 |  |\n\n",
        "[Open report.html](http://127.0.0.1:5000/#/runs/1/artifacts/report.html?x)", "![recall]",
        "## All metrics", "| a/b/recall@1 | 30.0% |",
    ]  # fmt: skip
    assert sorted(order, key=text.index) == order
    assert "![confusion]" not in text
    (folder / "verdict.json").write_text('{"passed": true}')
    assert "**Passed**" in report_markdown(folder, shown)
    assert "`reports/evaluate/report.html` in the run's files" in report_markdown(folder, shown)
    assert "| main figures |  |\n| --- | ---: |\n| num_sets | 1,234 |\n\n" in report_markdown(
        folder, replace(shown, figures=("num_*",))
    )
    failed = report_markdown(folder, shown, "no sets")
    assert "**Passed**" not in failed and failed.index("no sets") < failed.index("main figures")


def test_the_figures_of_dvc_yaml_are_those_of_its_reports():
    """Five at most a stage, each of the stage's own report; those of the evaluation are of any set."""
    for one in read_dag(ROOT):
        assert 2 <= len(one.figures) <= 5
        own = "*/" if one.name == "evaluate" else f"{Path(one.report).name}/"
        assert all(figure.startswith(own) for figure in one.figures), one.name


def test_the_picture_of_a_report_fits_into_an_event_of_prefect(tmp_path):
    """One that is too large is named instead. Others are in report.html only."""
    report(tmp_path, "filter", {"filter/num_kept": 1})
    noise = np.random.default_rng(0)
    for name, side in (("examples", 400), ("large", 1100), ("more", 500)):
        picture = Image.fromarray(noise.integers(0, 255, (side, side, 3), dtype=np.uint8))
        picture.save(tmp_path / f"reports/filter/{name}.png")

    def shown(plot):
        text = report_markdown(tmp_path / "reports/filter", replace(stage("filter"), plot=plot))
        assert len(text) < 1_500_000
        return text

    assert re.search(r"\n\nlarge\.png: .* MB, see filter/ in the checkout\n", shown("large.png"))
    for plot, name, side in (("", "examples", 400), ("more.png", "more", 500)):
        [(found, data)] = re.findall(r"!\[(\w+)\]\(data:image/png;base64,([^)]+)\)", shown(plot))
        assert found == name
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (side, side)
