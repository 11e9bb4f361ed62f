"""Both gates from their data to their report, with a check that a test decides; Great Expectations is not imported."""

import json
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.infrastructure import EngineConfig
from align.config.validate import ValidateConfig
from align.errors import ConfigError, DataError, GateError
from align.formats.acceptances import read_acceptances
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.filtered import decisions_digest
from align.formats.shards import Sample
from align.formats.verdict import require_passed
from align.services.engine import open_engine
from align.validate.report import read_report
from align.validate.tables import JudgedData, make_views, sample_rows
from align.validate.validate import git_user, validate
from align.validate.validate_shards import validate_shards
from tests.support import small_data
from tests.support.bombs import parquet_bomb
from tests.support.evaluation_sets import write_items
from tests.support.gates import ENGINE, accept_failure, check_that_fails, pairs, rewrite, run_gate
from tests.support.params import load_params
from tests.support.shard_folder import write_shards


def test_the_gate_over_tables_publishes_what_the_check_says(tmp_path):
    small_data.write(tmp_path, pairs())
    (tmp_path / "evaluation").mkdir()
    config = load_params().section(ValidateConfig)
    data = JudgedData(tmp_path / "raw", tmp_path / "filtered", tmp_path / "evaluation", {"concepts": "f" * 64})
    reports = tmp_path / "quality"
    policy = tmp_path / "policy"
    with pytest.raises(GateError, match=r"keep-rate: keep rate: observed 0\.7, expected "):
        validate(config, ENGINE, data, policy=policy, reports=reports, check=check_that_fails("keep-rate"))
    with pytest.raises(GateError):
        require_passed(reports, decisions_digest(data.filtered), data.filtered)
    (reports / "of an earlier version").touch()
    report = validate(config, ENGINE, data, policy=policy, reports=reports, check=check_that_fails())
    assert {path.name for path in reports.iterdir()} == {
        ".align.json", "report.json", "metrics.json", "verdict.json", "report.html", "distributions.png",
    }  # fmt: skip
    require_passed(reports, decisions_digest(data.filtered), data.filtered)
    assert json.loads((reports / "metrics.json").read_text()) == {
        "quality/num_expectations": len(report.expectations), "quality/num_failed": 0, "quality/num_accepted": 0,
        "quality/num_pairs": 20, "quality/keep_rate": 0.7,
    }  # fmt: skip


def test_a_source_that_was_lost_whole_is_said_before_the_verdict(tmp_path, capsys):
    small_data.write(tmp_path, pairs())
    (tmp_path / "evaluation").mkdir()
    places = [f"photos/{row}.jpg" if row < 16 else f"<products>/{row}.jpg" for row in range(20)]

    def move(rows):
        return [row | {"url": place} for row, place in zip(rows, places, strict=True)]

    rewrite(tmp_path / "raw/00000.parquet", move)
    data = JudgedData(tmp_path / "raw", tmp_path / "filtered", tmp_path / "evaluation", {})
    folders = {"policy": tmp_path / "policy", "reports": tmp_path / "quality"}
    validate(load_params().section(ValidateConfig), ENGINE, data, **folders, check=check_that_fails())
    lost = "he filter kept none of the 4 pairs of {}: 3 were dropped as text_too_short"
    assert capsys.readouterr().err.startswith("validate: t" + lost.format("<products>"))
    page = (tmp_path / "quality/report.html").read_text()
    assert "T" + lost.format("&lt;products&gt;") in page and "pairs of photos" not in page


def test_the_keep_rate_of_each_source_of_texts_has_a_band(tmp_path, capsys):
    small_data.write(tmp_path, pairs())
    (tmp_path / "evaluation").mkdir()
    data = JudgedData(tmp_path / "raw", tmp_path / "filtered", tmp_path / "evaluation", {})
    folders = {"policy": tmp_path / "policy", "reports": tmp_path / "quality"}
    bands = "{alt: [0.6, 1.0], synthetic: [0.5, 1.0], it's: [0.0, 1.0], title: [0.0, 1.0]}"
    config = load_params(overrides=[f"validate.keep_rate_by_source={bands}"]).section(ValidateConfig)

    report = validate(config, ENGINE, data, **folders, check=check_that_fails())  # a table of img2dataset
    assert [one.observed for one in report.expectations if one.name.startswith("kept-from-")] == ["None"] * 4
    table = tmp_path / "raw/00000.parquet"
    raw = pq.read_table(table)
    sources = ["alt"] * 14 + ["it's"] * 4 + ["synthetic"] * 2  # 14 of 14, 0 of 4 and 0 of 2 are kept
    pq.write_table(raw.append_column("text_source", [sources]), table)
    with pytest.raises(GateError):
        validate(config, ENGINE, data, **folders)
    found = read_report(folders["reports"])
    assert found is not None and found.bands["keep_rate_by_source"] == {"synthetic": [0.0, 1.0]}
    outcomes = {one.name.removeprefix("kept-from-"): one for one in found.expectations if "kept-from" in one.name}
    assert {name: one.passed for name, one in outcomes.items()} == {
        "alt": True, "synthetic": False, "it's": True, "title": False,
    }  # fmt: skip
    assert (outcomes["alt"].observed, outcomes["synthetic"].observed) == ("100%", "0%")
    said = capsys.readouterr().err
    lost = "he filter kept none of the 2 pairs with a text from synthetic: 2 were dropped as text_too_short"
    assert f"validate: t{lost};" in said and "4 pairs with a text from it's" in said and "from alt" not in said
    assert f"T{lost}." in (folders["reports"] / "report.html").read_text()


def test_the_gate_looks_for_the_images_of_sets(tmp_path):
    small_data.write(tmp_path, pairs())
    images = [EvaluationImage("k", "c", ("a text",), None, "query")]
    one = EvaluationSet("photos", "retrieval", "", images, (), (), held([small_data.jpeg(0)]))
    sha256 = write_items(tmp_path / "evaluation", one)
    config = load_params().section(ValidateConfig)
    for checked, unchecked in (({"photos": sha256}, "0"), ({"photos": "f" * 64}, "1")):
        data = JudgedData(tmp_path / "raw", tmp_path / "filtered", tmp_path / "evaluation", checked)
        report = validate(
            config, ENGINE, data, policy=tmp_path / "policy", reports=tmp_path / "quality", check=check_that_fails()
        )
        observed = {outcome.name: outcome.observed for outcome in report.expectations}
        assert observed["kept-evaluation-bytes"] == "1"  # the pair of this picture is kept
        assert (observed["checked-sets"], observed["unchecked-sets"]) == ("1", unchecked)


def test_the_gate_over_shards_publishes_what_the_check_says(tmp_path):
    small_data.write(tmp_path, pairs())
    shards = small_data.write_shards(tmp_path, num_val=4)
    paths = {"shards": shards, "filtered": tmp_path / "filtered", "policy": tmp_path, "reports": tmp_path / "quality"}
    with pytest.raises(GateError, match=r"samples-undecodable: .*: observed 14, expected 0"):
        validate_shards(ENGINE, **paths, check=check_that_fails("samples-undecodable"))
    report = validate_shards(ENGINE, **paths, check=check_that_fails())
    assert report.metrics["quality_shards/num_images"] == 14
    assert report.metrics["quality_shards/num_shards"] == 2
    observed = {outcome.name: outcome.observed for outcome in report.expectations if outcome.observed != "0"}
    assert observed == {"samples-undecodable": "14"}  # too large for 16 px
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "The first faults of each kind" in page and "train/00000.tar: " in page


def test_the_page_shows_who_accepted_what_and_why(tmp_path):
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "What failed" in page and "align validate --accept b" in page
    accept_failure(tmp_path, "b", "icons are <small>", "Ada")
    run_gate(tmp_path, "b")
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "What failed" not in page
    assert "icons are &lt;small&gt;" in page and "<td>Ada</td>" in page and "2026-01-31" in page
    assert "<td class=warn>accepted</td>" in page


def test_other_pairs_and_an_image_in_two_splits_are_told(tmp_path):
    """The shards hold the kept pairs, but one image is in two splits; then one pair is kept with another text."""
    image = small_data.jpeg(0, 24, 24)
    samples = [Sample(key, image_id, image, (key,), (f"text {key}",)) for key, image_id in (("1", "i"), ("2", "i"))]
    write_shards(tmp_path / "shards", {"train": [samples[:1]], "val": [samples[1:]]}, image_px=24)
    rows = [{"key": one.key, "keep": True, "image_id": "i", "text": one.texts[0]} for one in samples]
    (tmp_path / "filtered/decisions").mkdir(parents=True)

    def observed():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "filtered/decisions/00000.parquet")
        report = validate_shards(
            ENGINE, shards=tmp_path / "shards", filtered=tmp_path / "filtered", policy=tmp_path / "policy",
            reports=tmp_path / "quality_shards", check=check_that_fails(),
        )  # fmt: skip
        assert {path.suffix for path in (tmp_path / "quality_shards").iterdir()} == {".json", ".html"}
        return {one.name: one.observed for one in report.expectations if one.observed != "0"}

    assert observed() == {"images-in-two-splits": "1"}
    rows[1]["text"] = "another"
    assert observed() == {"images-in-two-splits": "1", "kept-pairs-differ": "1"}


def test_captions_without_end_are_cut_in_a_sample(tmp_path):
    raw, filtered = small_data.write(tmp_path, [small_data.Pair("a small red fox", 0)])
    config = load_params().section(EngineConfig).model_copy(update={"memory_limit": "200MB", "num_threads": 1})
    parquet_bomb(raw / "00000.parquet", 1000)  # a gigabyte of captions
    with open_engine(config, tmp_path) as engine:
        data = JudgedData(raw, filtered, tmp_path / "none", {})
        samples = sample_rows(engine, data, 1000, make_views(engine, data))
    assert samples["raw"]["caption"].str.len().tolist() == [8192] * 1000


def test_a_second_acceptance_replaces_the_first_and_others_stay(tmp_path):
    with pytest.raises(GateError):
        run_gate(tmp_path, "b", "c")
    for name, reason in (("b", "one"), ("c", "two"), ("b", "three")):
        accept_failure(tmp_path, name, reason)
    assert [(item.expectation, item.reason) for item in read_acceptances(tmp_path)] == [("c", "two"), ("b", "three")]


def test_several_failures_are_accepted_at_once_or_none(tmp_path):
    with pytest.raises(GateError, match=r"b: .* \(1 more failed: c\); see .*: align validate --accept b,c --reason"):
        run_gate(tmp_path, "b", "c")
    with pytest.raises(DataError, match=r"--accept bb: no failure of this name in the last run \(failed: b, c\)"):
        accept_failure(tmp_path, "b,bb")
    assert read_acceptances(tmp_path) == ()
    accept_failure(tmp_path, "c,b")
    assert [item.expectation for item in read_acceptances(tmp_path)] == ["c", "b"]
    assert run_gate(tmp_path, "b", "c").num_accepted == 2


@pytest.mark.parametrize(("name", "reason", "by", "error", "message"), [
    ("a", "why", "Ada", DataError, "no failure of this name"),  # it passed: nothing to accept
    ("b", "why", "", ConfigError, "by whom"),
])  # fmt: skip
def test_bad_usage_is_one_clear_line(tmp_path, name, reason, by, error, message):
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    with pytest.raises(error, match=message) as caught:
        accept_failure(tmp_path, name, reason, by)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "accepted.json").exists()


def test_git_names_the_person(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert git_user() == ""
    subprocess.run(["git", "config", "--global", "user.name", "Ada"], check=True)
    assert git_user() == "Ada"
    subprocess.run(["git", "config", "--global", "user.email", "ada@example.org"], check=True)
    assert git_user() == "Ada <ada@example.org>"
