"""The page of a study: a row and a point for each arm in the order of the file, and what it does not know is said."""

import json
import re
from types import SimpleNamespace

from align.config.study import Study
from align.display.figure import BAD, GOOD, LIGHT
from align.lineage.runs.study import COLUMNS, notes, page, read_runs, rows, write

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


class Logged:
    """As a Tracker whose runs have the figures of EFFECTS, more with each seed, and a little uneven."""

    def __init__(self, other):
        self.other = other

    def table(self, run_id, name):
        arm, seed = run_id.split("-")
        uneven = 0.004 * (-1) ** (ARMS.index(arm) * int(seed))
        figures = {"concepts/mean_recall": EFFECTS[arm] + 0.01 * int(seed) + uneven, "test/mean_recall": 0.25}
        return [[name, value, value, None, None, None] for name, value in figures.items()]

    def artifact(self, run_id, path, folder):
        arm = run_id.split("-")[0]
        sets = {"concepts": {"digest": "other" if arm == self.other else "c"}, "test": {"digest": arm}}
        (folder / "report.json").write_text(json.dumps({"sets": sets}))
        return folder / "report.json"


def found(seeds=3, without=(), other=""):
    names = [(arm, seed) for arm in ARMS for seed in range(seeds) if f"{arm}-{seed}" not in without]
    runs = {(arm, seed): SimpleNamespace(run_id=f"{arm}-{seed}", name=f"small-{arm}-s{seed}") for arm, seed in names}
    missing = {(arm, int(seed)): "it failed" for arm, seed in (name.split("-") for name in without)}
    return read_runs(STUDY, runs, missing, Logged(other))


def test_a_row_for_each_arm_with_its_verdict_beside_the_papers():
    all_of_it = found()
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


def test_runs_that_are_missing_or_measured_on_others_are_said():
    some = found(without=("more-1",), other="less")
    assert some.figures.keys() == {(arm, seed) for arm in ("base", "more", "same") for seed in range(3)} - {("more", 1)}
    assert [row[1] for row in rows(STUDY, some)] == ["3/3", "2/3", "0/3", "3/3"]
    said = [*notes(STUDY, some)]
    assert "Without more, seed 1: it failed" in said
    assert "Without less, seed 2: its set concepts has other items than that of base" in said
    assert some.comparison.differences.keys() == {"more", "same"}


def test_one_seed_has_points_and_no_verdict(tmp_path):
    one = found(seeds=1)
    assert {row[4] + row[5] + row[6] for row in rows(STUDY, one)} == {""}
    assert any("There is no verdict" in note for note in notes(STUDY, one))
    write(STUDY, one, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(run["arm"], run["seed"]) for run in report["runs"]] == [(arm, 0) for arm in ARMS]
    assert report["differences"]["more"]["verdict"] == "" and report["study"]["primary"] == ["concepts/mean_recall"]
