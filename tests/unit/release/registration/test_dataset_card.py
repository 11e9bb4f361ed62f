"""The card and the summary of a data set, from the reports of its stages; what pages say is no markup there."""

import json

import pytest

from align.formats.shards import read_manifest
from align.release.registration.dataset_card import croissant, sources
from align.release.registration.results import PipelineOutputs
from tests.support import small_data
from tests.support.small_data import Pair

BY = "https://creativecommons.org/licenses/by/4.0/"


@pytest.fixture
def outputs(tmp_path):
    small_data.write(tmp_path, [Pair(f"picture number {index}", index) for index in range(30)])
    return PipelineOutputs(tmp_path / "packaged", small_data.write_shards(tmp_path), tmp_path / "reports", ())


def report(outputs, stage, **values):
    (outputs.reports / stage).mkdir(parents=True)
    (outputs.reports / stage / "report.json").write_text(json.dumps(values))


def test_a_summary_has_what_the_reports_count(outputs):
    hosts = {"a.example": {"success": 30, "reserved": 3}, "<b>|[x](http://e)": {"opted out": 2}}
    licences = {BY: 20, "https://evil.example/|<script>": 1}
    report(outputs, "ingest", num_pairs=40, hosts=hosts, licences=licences,
           errors={"reserved": 3, "opted out": 2, "HTTP 404": 5})  # fmt: skip
    funnel = [{"reason": "pair_licence", "num_first": 4}, {"reason": "opted_out", "num_first": 0}]
    report(outputs, "filter", num_pairs=40, num_kept=30, funnel=funnel)
    text = sources("data", read_manifest(outputs.shards), outputs)
    for line in (
        "| pairs that the sources name | 40 |", "| pairs that passed the filter | 30 of 40 |",
        "| a.example | 33 | 30 |", "All others: 5 pairs.", f"| {BY} | 20 |",
        "| no allowed licence (filter.licences) | 4 |",
    ):  # fmt: skip
        assert line in text
    assert "TDM Reservation Protocol, Content-Usage, Content-Signal | 3 |" in text
    assert "while pictures were gathered | 2 |" in text
    assert "HTTP 404" not in text and "take-downs, by the filter" not in text
    assert "<script>" not in text and "<b>" not in text and "|[x](" not in text


def test_a_summary_without_reports_says_so(outputs):
    text = sources("data", read_manifest(outputs.shards), outputs)
    assert "None was found." in text and "No page states one." in text and "## Domains" not in text


def test_the_card_names_each_tar_with_its_digest(outputs):
    report(outputs, "ingest", licences={BY: 20})
    manifest = read_manifest(outputs.shards)
    card = json.loads(croissant("data", manifest, outputs))
    files = {one["@id"]: one for one in card["distribution"] if one["@type"] == "cr:FileObject"}
    assert {name: one["sha256"] for name, one in files.items()} == {
        name: shard.sha256 for name, shard in manifest.tars.items()
    }
    assert card["license"] == [BY] and card["version"].endswith(manifest.digest[:12])
    assert "30 pictures" in card["description"]
