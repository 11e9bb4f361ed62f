"""What is known of a pair, which `align trace` says first, on a hand-made data/raw, data/filtered and data/shards."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.config.filter import FilterConfig
from align.durable.files import write_text
from align.filter.rules import RULES, conditions
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import iter_images, raw_shards
from align.lineage.trace.pair_history import look_up
from align.lineage.versions.raw_pairs import find_pairs
from tests.support import small_data
from tests.support.params import load_params
from tests.support.small_data import Pair

THRESHOLDS = load_params().section(FilterConfig)
PAIRS = [
    Pair("a red fox", 1),
    Pair("fox in the snow", 1),
    Pair("short", 2, reason="text_too_short"),
    Pair("gone long ago", None, reason="image_missing"),
]
KEPT, ALSO_KEPT, SHORT, MISSING = (f"00000{number:04d}" for number in range(4))


@pytest.fixture
def data(tmp_path):
    """As the stages write it, with the values that rules look at."""
    root = tmp_path / "data"
    small_data.write(root, PAIRS)
    facts = [
        {"key": f"00000{number:04d}", "num_words": len(pair.text.split()), "nsfw_score": 0.25, "twin": twin,
         "twin_cosine": cosine}
        for (number, pair), (twin, cosine) in zip(
            enumerate(PAIRS), [("vendor/7", 0.9812), (None, None), ("vendor/8", None), (None, None)], strict=True
        )
    ]  # fmt: skip
    (root / "filtered/facts").mkdir()
    pq.write_table(pa.Table.from_pylist(facts), root / "filtered/facts/00000.parquet")
    small_data.write_shards(root)
    return root


def explained(data, key):
    (row,) = find_pairs(data / "raw", "key", [key])
    folders = {name: data / name for name in ("filtered", "report", "policy")}
    return look_up(row, THRESHOLDS, **folders)


def rule(history, code):
    (one,) = (one for one in history["rules"] if one["rule"] == code)
    return dict(one)


def test_a_kept_pair_has_its_values_and_cuts(data):
    history = explained(data, ALSO_KEPT)
    expected = {"keep": True, "reason": None, "reasons": [], "text": "fox in the snow"}
    assert history["decision"].items() >= expected.items()
    assert history["pair"]["page_url"] == "https://example.org/"
    assert [one["rule"] for one in history["rules"]] == list(RULES)
    assert {one["verdict"] for one in history["rules"]} == {"passes", "off"}
    short = rule(history, "text_too_short")
    assert short["values"] == {"num_words": 4}
    assert short["drops_where"] == f"num_words < {THRESHOLDS.min_words}"
    assert rule(history, "image_too_small")["values"] == {"width_px": 260, "height_px": 220}
    assert rule(history, "image_nsfw")["drops_where"] == f"nsfw_score >= {THRESHOLDS.nsfw_threshold}"
    assert rule(history, "text_other_language")["verdict"] == "off"


def test_a_dropped_pair_says_by_what_first(data):
    history = explained(data, SHORT)
    assert history["decision"]["reason"] == "text_too_short"
    short = rule(history, "text_too_short")
    assert (short["verdict"], short["values"]) == ("drops", {"num_words": 1})
    assert rule(history, "text_too_long")["verdict"] == "passes"


def test_the_cuts_are_those_that_made_the_decisions(data):
    used = THRESHOLDS.model_copy(update={"min_words": 2, "nsfw_threshold": 0.125, "drop_filenames": False})
    funnel = [{"reason": code, "drops_where": cut} for code, cut in conditions(used).items()]
    write_text(data / "report/report.json", json.dumps({"funnel": funnel}))
    history = explained(data, SHORT)
    assert rule(history, "text_too_short")["drops_where"] == "num_words < 2"
    assert rule(history, "image_nsfw")["drops_where"] == "nsfw_score >= 0.125"
    assert rule(history, "text_is_filename")["verdict"] == "off"
    now = f"image_nsfw: nsfw_score >= {THRESHOLDS.nsfw_threshold}, text_too_short: num_words < {THRESHOLDS.min_words}"
    assert f"params.yaml now has {now}, text_is_filename: is_filename;" in history["cuts_line"]
    funnel = [{"reason": code, "drops_where": cut} for code, cut in conditions(THRESHOLDS).items()]
    write_text(data / "report/report.json", json.dumps({"funnel": funnel}))
    assert explained(data, SHORT)["cuts_line"] is None
    for other in ('{"funnel": [{"reason": "opted_out"}]}', "[", "[]"):  # of an older filter
        write_text(data / "report/report.json", other)
        assert "no report of the filter says" in str(explained(data, SHORT)["cuts_line"])


def test_a_take_down_is_shown(data):
    entry = Entry("host", "example.org", "", "2026-01-02")
    write_opted_out(data / "policy", OptedOut([entry]))
    assert explained(data, KEPT)["opted_out"] == {"kind": "host", "value": "example.org"}


def test_without_the_later_stages_it_says_so(data, tmp_path):
    (row,) = find_pairs(data / "raw", "key", [KEPT])
    no = tmp_path / "no"
    history = look_up(row, THRESHOLDS, filtered=no, report=no, policy=no)
    assert (history["decision"], history["opted_out"]) == (None, None)
    assert {one["verdict"] for one in history["rules"]} == {"unknown"}


def command(data, *words):
    paths = ("raw", "filtered", "shards", "policy")
    return ["trace", *words, *(f"--set=paths.{name}={data / name}" for name in paths)]


def test_the_command_takes_a_key_an_address_a_picture_or_its_sha256(data, capsys, monkeypatch):
    monkeypatch.chdir(data.parent)  # no MLflow, no git, no DVC: the command says so, and writes nothing
    (picture,) = (image for key, image in iter_images(raw_shards(data / "raw")[0]) if key == KEPT)
    Path("fox.jpg").write_bytes(picture)
    [row] = find_pairs(data / "raw", "key", [KEPT])
    for words in (row["sha256"], "fox.jpg", "https://example.org/1.jpg", f"key:{ALSO_KEPT}"):
        assert main(command(data, words, "--json")) == 0
        sections = json.loads(capsys.readouterr().out)["sections"]
        keys = [one["title"].partition(":")[0].removeprefix("pair ") for one in sections if one["kind"] == "pair"]
        assert keys == ([KEPT] if words != f"key:{ALSO_KEPT}" else []) + [ALSO_KEPT]
        (place,) = [one for one in sections if one["kind"] == "shards"]
        assert (place["title"], place["facts"]["sample"], place["facts"]["texts"]) == ("train/00000.tar", KEPT, "2")
    assert main(command(data, SHORT)) == 0
    said = capsys.readouterr()
    assert "  decision              dropped: text_too_short\n" in said.out and "no MLflow here" in said.err
    assert f"text_too_short      drops; num_words = 1; drops where num_words < {THRESHOLDS.min_words}\n" in said.out
    assert "    twin                test image vendor/8, equal bytes or hashes\n" in said.out
    assert main(command(data, KEPT)) == 0
    assert "    twin                test image vendor/7, cosine 0.9812\n" in capsys.readouterr().out
    assert main(command(data, MISSING)) == 0
    said = capsys.readouterr().out
    assert "    download            failed_to_download: 404" in said
    assert "    models              its picture was never downloaded" in said
    assert sorted(path.name for path in data.parent.iterdir()) == ["data", "fox.jpg"]


def test_an_unavailable_mlflow_is_one_line(data, capsys, monkeypatch):
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(command(data, KEPT)) == 0
    assert "MLflow at http://127.0.0.1:9" in capsys.readouterr().err
