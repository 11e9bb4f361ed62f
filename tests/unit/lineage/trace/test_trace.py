"""`align trace` over a hand-made checkout: no git, no DVC, no MLflow; texts and addresses are hostile."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from tests.support import small_data
from tests.support.small_data import Pair

EVIL = "<script>alert('fox')</script> \x1b[31m\u202e a fox\nin two lines"
PAIRS = [Pair(EVIL, 1), Pair("fox in the snow", 1), Pair("short", 2, reason="text_too_short"), Pair("gone", None)]
KEPT, ALSO_KEPT, SHORT, MISSING = (f"00000{number:04d}" for number in range(4))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """data/raw, data/filtered and data/shards of four pairs, whose page is hostile; no reports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "data"
    raw, _ = small_data.write(root, [*PAIRS[:3], Pair("gone", None, reason="image_missing")])
    rows = pq.read_table(raw / "00000.parquet").to_pylist()
    for row in rows:
        row["page_url"] = f"javascript:{EVIL}" if row["key"] == KEPT else "https://example.org/page?a=\"'><b>"
    pq.write_table(pa.Table.from_pylist(rows, schema=small_data.RAW_SCHEMA), raw / "00000.parquet")
    small_data.write_shards(root)
    return root


def traced(capsys, *words):
    assert main(["trace", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def titles(values):
    found = {}
    for section in values["sections"]:
        found.setdefault(section["kind"], []).append(section["title"])
    return found


def test_a_kept_pair_leads_to_its_shard_and_says_what_is_not_known(data, capsys):
    values = traced(capsys, ALSO_KEPT)
    found = titles(values)
    assert found["pair"] == [f"pair {ALSO_KEPT}: fox in the snow"]
    assert found["decision"] == ["kept: no rule drops it"]
    assert found["shards"] == ["train/00000.tar"]
    assert found["gate"] == ["verdict not here"]
    assert "run" not in found
    (note,) = [line for line in values["notes"] if "MLflow" in line]
    assert note.startswith("no MLflow here")
    place = next(one["facts"] for one in values["sections"] if one["kind"] == "shards")
    assert (place["sample"], place["texts"], place["split"]) == (KEPT, "2", "train")


def test_dropped_pairs_end_at_their_rule(data, capsys):
    found = titles(traced(capsys, SHORT))
    assert found["decision"] == ["dropped: text_too_short"]
    assert "shards" not in found
    values = traced(capsys, MISSING)
    assert titles(values)["decision"] == ["dropped: image_missing"]
    assert values["answers"] == ["its picture was never downloaded, so no model can have seen it"]


def test_a_page_and_a_picture_name_all_their_pairs(data, capsys):
    of_page = titles(traced(capsys, "https://example.org/page?a=\"'><b>"))
    assert [one.partition(":")[0] for one in of_page["pair"]] == [f"pair {key}" for key in (ALSO_KEPT, SHORT, MISSING)]
    assert len(of_page["page"]) == 1
    of_picture = titles(traced(capsys, "https://example.org/1.jpg"))
    assert [one.partition(":")[0] for one in of_picture["pair"]] == [f"pair {KEPT}", f"pair {ALSO_KEPT}"]
    assert of_picture["shards"] == ["train/00000.tar"]  # both are texts of one sample


def test_a_cut_off_tar_or_report_is_named_and_the_rest_is_shown(data, capsys):
    report = Path("reports/quality")
    report.mkdir(parents=True)
    (report / "verdict.json").write_text('{"passed": tr')
    tar = data / "shards/train/00000.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    values = traced(capsys, ALSO_KEPT)
    assert titles(values)["decision"] == ["kept: no rule drops it"]
    assert any("00000.tar: cut off or damaged" in note for note in values["notes"])
