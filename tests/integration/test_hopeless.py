"""Pictures that ingest did not fetch: what the filter and the gate say of them when the rules on texts are wider."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from tests.support.small_filter import noise
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

TEXTS = ["a good long text", "three words only", "two words", "another good long text"]


def test_wider_rules_are_told_what_is_missing_until_it_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"paths.{name}={tmp_path / name}" for name in ("raw", "filtered", "reports", "runtime", "policy")]
    settings += [f"paths.evaluation={tmp_path / 'none'}", f"paths.archive={tmp_path / 'table.jsonl'}"]
    settings += ["ingest.source=url_table", "download.allow_networks=[127.0.0.0/8]", "engine.num_workers=1"]
    common = [word for setting in settings for word in ("--set", setting)]
    narrow = ["--set", "filter.min_words=4"]
    with WebServer() as server:
        for number in range(len(TEXTS)):
            server.routes[f"/{number}.png"] = answer(noise(number))
        lines = [{"url": server.url(f"/{number}.png"), "caption": text} for number, text in enumerate(TEXTS)]
        (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert main(["ingest", *common, *narrow]) == 0

        assert main(["filter", *common, *narrow]) == 0  # the rules that ingest knew
        assert reasons(tmp_path) == {
            "a good long text": [], "another good long text": [],
            "three words only": ["text_too_short", "image_not_fetched"],
            "two words": ["text_too_short", "image_not_fetched"],
        }  # fmt: skip
        assert "did not fetch" not in capsys.readouterr().err + page(tmp_path)

        assert main(["filter", *common]) == 0
        assert reasons(tmp_path)["three words only"] == ["image_not_fetched"]
        assert reasons(tmp_path)["two words"] == ["text_too_short", "image_not_fetched"]
        said = capsys.readouterr().err
        assert "warning: 1 pair(s) pass every rule on texts by now" in said and "align ingest --retry-failed" in said
        assert "1 more pass every rule on texts by now" in page(tmp_path)
        assert metrics(tmp_path)["filter/dropped/image_not_fetched"] == 1

        gate = ["validate", *common]
        for setting in ("min_pairs=1", "min_evaluation_sets=0", "keep_rate=[0.0, 1.0]"):
            gate += ["--set", f"validate.{setting}"]
        gate += ["--set", "validate.dropped_share.text_too_short=[0.0, 1.0]"]
        assert main(gate) == 1
        assert "dropped-image-not-fetched: share dropped as image_not_fetched: observed 0.25" in capsys.readouterr().err

        assert main(["ingest", *common, "--retry-failed"]) == 0
        assert [server.count(f"/{number}.png") for number in range(4)] == [1, 1, 0, 1]
    assert main(["filter", *common]) == 0
    assert reasons(tmp_path)["three words only"] == []
    assert main(gate) == 0  # all pictures that were to be fetched are there: two words were not


def reasons(folder: Path) -> dict[str, list[str]]:
    rows = pq.read_table(folder / "filtered/decisions.parquet").to_pylist()
    assert all(row["reason"] == next(iter(row["reasons"]), None) for row in rows)
    return {row["text"]: row["reasons"] for row in rows}


def metrics(folder: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((folder / "reports/filter/metrics.json").read_text())
    return values


def page(folder: Path) -> str:
    return (folder / "reports/filter/report.html").read_text()
