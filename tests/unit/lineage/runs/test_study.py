"""The page of a study: a row and a point for each arm in the order of the file, and what it does not know is said."""

import json
import re

from align.config.paths import PathsConfig
from align.config.study import Study
from align.display.figure import BAD, GOOD, LIGHT
from align.lineage.runs import study as module
from align.lineage.runs.run import ComparedRun
from align.lineage.runs.study import COLUMNS, notes, page, read_runs, rows, write
from align.lineage.versions.at_revision import Revisions
from tests.support.params import load_params

ARMS = ("base", "more", "less", "same")
STUDY = Study.model_validate({
    "name": "small", "question": "Does <more> help?", "primary": ["concepts/mean_recall"],
    "seeds": [0, 1, 2],
    "arms": [
        {"name": "base"}, {"name": "more", "paper": "more helps", "expected": "worse"},
        {"name": "less", "paper": "less harms", "expected": "worse"}, {"name": "same", "expected": "better"},
    ],
})  # fmt: skip
EFFECTS = {"base": 0.5, "more": 0.625, "less": 0.375, "same": 0.505}


def found(monkeypatch, tmp_path, seeds=3, without=(), other=""):
    """Read from runs whose figures are those of EFFECTS, more with each seed, and a little uneven."""

    def read(name, *_):
        arm, seed = name.removeprefix("run/").split("-")
        uneven = 0.004 * (-1) ** (ARMS.index(arm) * int(seed))
        figure = EFFECTS[arm] + 0.01 * int(seed) + uneven
        metrics = {"concepts/mean_recall": figure, "test/mean_recall": 0.25}
        digests = {"set/concepts": "other" if arm == other else "c", "set/test": arm}
        return ComparedRun(name, "", "", None, {}, metrics, digests)

    monkeypatch.setattr(module, "read_run", read)
    names = {(arm, seed): f"{arm}-{seed}" for arm in ARMS for seed in range(seeds) if f"{arm}-{seed}" not in without}
    missing = {(arm, int(seed)): "it failed" for arm, seed in (name.split("-") for name in without)}
    return read_runs(STUDY, names, missing, load_params().section(PathsConfig), Revisions(tmp_path, tmp_path))


def test_a_row_for_each_arm_with_its_verdict_beside_the_papers(monkeypatch, tmp_path):
    all_of_it = found(monkeypatch, tmp_path)
    table = [*rows(STUDY, all_of_it)]
    assert [row[0] for row in table] == [*ARMS] and all(len(row) == len(COLUMNS) for row in table)
    base, more, less, same = (dict(zip(COLUMNS, row, strict=True)) for row in table)
    assert base["minus base, points"] == base["verdict"] == base["beside the paper"] == ""
    assert (more["verdict"], more["beside the paper"], more["paper"]) == ("better", "against the paper", "more helps")
    assert (less["verdict"], less["beside the paper"]) == ("worse", "as in the paper")
    assert (same["verdict"], same["beside the paper"]) == ("not told apart", "not told apart")
    assert re.fullmatch(r"\+1[12]\.\d", more["minus base, points"]) and more["runs"] == "3/3"
    text = page(STUDY, all_of_it)
    assert "Does &lt;more&gt; help?" in text
    assert text.count("<table>") == text.count("<svg ") == 1
    plot = text[text.index("<svg ") : text.index("</svg>")]
    assert [plot.index(f">{arm}</text>") for arm in ARMS] == sorted(plot.index(f">{arm}</text>") for arm in ARMS)
    for colour in (GOOD, BAD):
        name = next(name for name, value in LIGHT.items() if value == colour)
        assert f'stroke="var(--{name})"' in plot or f"var(--{name})" in plot


def test_runs_that_are_missing_or_measured_on_others_are_said(monkeypatch, tmp_path):
    some = found(monkeypatch, tmp_path, without=("more-1",), other="less")
    assert some.figures.keys() == {(arm, seed) for arm in ("base", "more", "same") for seed in range(3)} - {("more", 1)}
    assert [row[1] for row in rows(STUDY, some)] == ["3/3", "2/3", "0/3", "3/3"]
    said = [*notes(STUDY, some)]
    assert "Without more, seed 1: it failed" in said
    assert "Without less, seed 2: its set concepts has other items than that of base" in said
    assert some.comparison.differences.keys() == {"more", "same"}


def test_one_seed_has_points_and_no_verdict(monkeypatch, tmp_path):
    one = found(monkeypatch, tmp_path, seeds=1)
    assert {row[4] + row[5] + row[6] for row in rows(STUDY, one)} == {""}
    assert any("There is no verdict" in note for note in notes(STUDY, one))
    write(STUDY, one, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(run["arm"], run["seed"]) for run in report["runs"]] == [(arm, 0) for arm in ARMS]
    assert report["differences"]["more"]["verdict"] == "" and report["study"]["primary"] == ["concepts/mean_recall"]
