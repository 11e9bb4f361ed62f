"""Two models on the same items: the verdicts are worked out by hand, and what cannot be compared is one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.errors import DataError
from align.evaluate.compare import (
    A_BETTER,
    B_BETTER,
    EQUAL,
    UNKNOWN,
    Measured,
    compare,
    lines,
    sentence,
    write_comparison,
)
from align.formats.query_ranks import QueryRanks, Ranked
from align.formats.shards import Sample
from tests.support import tiny_model
from tests.support.class_sets import folder
from tests.support.colours import square
from tests.support.shard_folder import write_shards
from tests.support.suites import suite

WAY = "image_to_text"


def model(name, *ranks, digest="d", queries="", **more):
    """A model that gave the right answer of each query, of a concept of its own, this rank among 20."""
    number = len(ranks)
    ids = tuple(queries) or tuple(map(str, range(number)))
    part = Ranked(ids, ids, None, np.array(ranks), np.ones(number, np.int64), 20)
    value = float(np.mean(np.array(ranks) == 1))
    metrics = {f"s/{WAY}/recall@1": value, f"s/{WAY}/recall@1/low": 0.0, f"s/{WAY}/recall@1/high": 1.0, **more}
    return Measured(name, f"digest of {name}", metrics, QueryRanks({"s": digest}, {("s", WAY): part}))


def verdict(a, b):
    return str(compare(a, b, seed=0).rows[f"s/{WAY}/recall@1"]["verdict"])


def test_the_better_model_is_named_and_noise_is_not():
    good, bad = model("good", *[1] * 30, *[9] * 10), model("bad", *[1] * 10, *[9] * 30)
    assert verdict(bad, good) == B_BETTER and verdict(good, bad) == A_BETTER
    other = model("other", *[9] * 2, *[1] * 28, *[1] * 2, *[9] * 8)  # two lost, two won
    assert verdict(good, other) == EQUAL
    row = compare(bad, good, seed=0).rows[f"s/{WAY}/recall@1"]
    assert (row["a"], row["b"], row["difference"], row["num_units"]) == (0.25, 0.75, 0.5, 40)
    assert 0 < row["low"] < 0.5 < row["high"] < 1 and row["detectable"] > 0
    # b - a turns around with the models
    turned = compare(good, bad, seed=0).rows[f"s/{WAY}/recall@1"]
    assert (turned["low"], turned["high"]) == pytest.approx((-row["high"], -row["low"]))


def test_too_few_concepts_are_said_in_words():
    report = compare(model("a", 1, 9, 9), model("b", 9, 1, 9), seed=0)
    assert report.rows[f"s/{WAY}/recall@1"]["detectable"] is None
    assert "any: too few concepts  none is found" in list(lines(report))[3]


def test_the_page_says_which_is_better_in_a_sentence_and_draws_it(tmp_path):
    good, bad = model("good", *[1] * 30, *[9] * 10), model("bad", *[1] * 10, *[9] * 30)
    for a, b, better, sign in ((bad, good, "B", "+"), (good, bad, "A", "−")):
        report = compare(a, b, seed=0)
        said = sentence(report)
        assert said.startswith(f"{better} is better by 1 of 1 metrics, {'A' if better == 'B' else 'B'} by 0; of two ")
        assert f"s/{WAY}/recall@1: B − A {sign}50.0 points (95 % interval {sign}" in said
        assert list(lines(report))[-1] == said
        write_comparison(report, tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert f"<p class=lead>{said}</p>" in page
        drawing = page.partition("<svg ")[2].partition("</svg>")[0]
        assert ">image\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}text recall@1</text>" in drawing
        assert (f"var(--{'good' if better == 'B' else 'bad'})" in drawing) and "percentage points" in drawing
    assert sentence(compare(good, replace(good, folder="copy"), seed=0)).startswith(
        f"A and B are not told apart by any of 1 metrics. Most of all by s/{WAY}/recall@1: B − A 0.0 points"
    )


def test_a_pair_of_equal_models_is_said_to_be_one():
    one = model("one", 1, 2, 3)
    report = compare(one, replace(one, folder="copy"), seed=0)
    assert report.rows[f"s/{WAY}/recall@1"]["verdict"] == EQUAL
    assert list(lines(report))[-1] == "A and B are the same model, byte for byte"


def test_a_metric_without_answers_by_query_has_no_verdict(tmp_path):
    probe = {"s/frozen/accuracy/low": 0.1, "s/frozen/accuracy/high": 0.9}
    a, b = (model(name, 1, 2, **{"s/frozen/accuracy": value, **probe}) for name, value in (("x", 0.2), ("y", 0.7)))
    report = compare(a, b, seed=0)
    row = report.rows["s/frozen/accuracy"]
    assert (row["difference"], row["low"], row["verdict"]) == (0.5, None, UNKNOWN)
    assert report.metrics["s/frozen/accuracy/difference"] == 0.5
    assert "s/frozen/accuracy/difference/low" not in report.metrics
    write_comparison(report, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == report.metrics
    assert UNKNOWN in (tmp_path / "report.html").read_text()


def test_names_of_strangers_are_text(tmp_path):
    write_comparison(compare(model("<script>", 1), model("b\u202e", 2), seed=0), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "\u202e" not in page and "http" not in page.replace("http-equiv", "")


def test_other_items_are_an_error():
    with pytest.raises(DataError, match="x and y were measured on other sets: s; measure both again"):
        compare(model("x", 1, 2), model("y", 1, 2, digest="e"), seed=0)
    with pytest.raises(DataError, match=r"set s: a picture can be shown to one of x and y only.*\(c\)"):
        compare(model("x", 1, 2, queries="ab"), model("y", 1, 2, 3, queries="abc"), seed=0)
    with pytest.raises(DataError, match="x and y have no metric in common"):
        compare(replace(model("x", 1), metrics={"s/a": 1, "s/a/low": 0}), model("y", 1), seed=0)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory without a project, two models and a suite."""
    for name, seed in (("a", 0), ("b", 1)):
        tiny_model.write(tmp_path / name, seed=seed)
    photos = folder(tmp_path / "photos")
    suite(
        tmp_path,
        {"name": "photos", "path": str(photos), "format": "folder", "tasks": ["zero_shot"], "templates": ["a {}."]},
    )
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


def run(place, *args):
    return main(["evaluate", "--set", f"paths.evaluation={place / 'suite.yaml'}", *args])


def test_two_folders_are_measured_and_compared(place, capsys):
    args = ("--compare", str(place / "a/model"), str(place / "b/model"), "--reports", str(place / "out"))
    assert run(place, *args) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"A: {place / 'a/model'}" and shown[2].startswith("metric ") and len(shown) == 6
    report = json.loads((place / "out/report.json").read_text())
    assert list(report["rows"]) == ["photos/zero_shot/accuracy", "photos/zero_shot/mean_per_class"]
    assert report["models"]["a"] != report["models"]["b"]
    for name in ("a", "b"):  # each model's own report is beside it
        metrics = json.loads((place / f"out/{name}/metrics.json").read_text())
        assert metrics["photos/zero_shot/accuracy"] == report["rows"]["photos/zero_shot/accuracy"][name]
    first = {path.name: path.read_bytes() for path in (place / "out").iterdir() if path.is_file()}
    assert run(place, *args) == 0  # again: the same bytes, from kept embeddings
    assert first == {path.name: path.read_bytes() for path in (place / "out").iterdir() if path.is_file()}


def test_a_project_without_evaluation_sets_compares_on_what_it_held_out(place):
    """As a new project of `align init`: its folder of sets is empty."""
    samples = [Sample(colour, colour, square(colour), (), (colour,)) for colour in ("red", "blue")]
    write_shards(Path("data/shards"), {"test": [samples]}, image_px=48)
    Path("sets").mkdir()
    models = ("--compare", str(place / "a/model"), str(place / "b/model"))
    assert main(["evaluate", "--set", "paths.evaluation=sets", *models, "--reports", "out"]) == 0
    assert {name.split("/")[0] for name in json.loads(Path("out/report.json").read_text())["rows"]} == {"test"}


def test_wrong_arguments_are_one_line_before_anything_is_measured(place, capsys):
    a, b, out = str(place / "a/model"), str(place / "b/model"), str(place / "out")
    (place / "linked").symlink_to(a)
    (place / "precious").mkdir()
    (place / "precious/file").write_text("kept")
    for args, said in (
        (["--compare", a, a, "--reports", out], "are the same folder; name two models"),
        (["--compare", a, str(place / "linked"), "--reports", out], "are the same folder; name two models"),
        (["--compare", a, str(place / "none"), "--reports", out], "none: no model here (config.json is missing)"),
        (["--compare", a, b], "name a folder for the comparison by --reports"),
        (["--compare", a, b, "--reports", "reports/evaluation"], "name a folder for the comparison by --reports"),
        (["--compare", a, b, "--model", a, "--reports", out], "leave --model out"),
        (["--compare", a, b, "--reports", str(place / "precious")], "precious"),
    ):
        assert run(place, *args) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert not (place / "out").exists() and (place / "precious/file").read_text() == "kept"
