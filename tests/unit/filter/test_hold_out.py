"""`filter.hold_out`: a share of one's own pairs becomes an evaluation set, and nothing that stays shows the same."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.durable import buckets
from align.errors import DataError
from align.filter import hold_out
from align.filter.filter import FilterFolders, filter_pairs
from align.filter.report import FilterReport
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.align_tar import held_out_sets
from tests.support.evaluation_sets import write_set
from tests.support.params import PARAMS_FILE, load_params
from tests.support.small_filter import copy_of, noise, quicken, shards, stock_folder

pytestmark = pytest.mark.usefixtures("quick")

ENGINE = (
    load_params(PARAMS_FILE)
    .section(EngineConfig)
    .model_copy(update={"memory_limit": "200MB", "num_threads": 2, "num_workers": 1})
)
CONFIG = load_params(PARAMS_FILE).section(FilterConfig).model_copy(update={"hold_out": 0.3})
NUM_IMAGES = 24


def pairs() -> list[tuple[str | None, bytes | None]]:
    """24 pictures with two texts; of each a re-encoded copy; one text that does not pass; 3 pictures share a text."""
    rows: list[tuple[str | None, bytes | None]] = []
    for index in range(NUM_IMAGES):
        rows += [
            (f"a picture of thing {index}", noise(index)),
            (f"the thing of picture {index}", noise(index)),
            (f"a copy of thing {index}", copy_of(noise(index))),
        ]
    rows += [(f"too short{index}", noise(index)) for index in range(NUM_IMAGES)]
    return [*rows, *(("one text for three", noise(100 + index)) for index in range(3))]


def run(raw: Path, out: Path, config: FilterConfig = CONFIG, evaluation: Path | None = None) -> FilterReport:
    (out / "none").mkdir(parents=True, exist_ok=True)
    none = out / "none"
    folders = FilterFolders(raw, evaluation or none, none, out / "filtered", out / "reports")
    return filter_pairs(config, ENGINE, folders)


def decided(out: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(out / "filtered/decisions").to_pylist()
    return rows


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FilterReport, EvaluationSet]:
    out = tmp_path_factory.mktemp("held")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        report = run(stock_folder(out / "raw", pairs()), out)
    [one] = held_out_sets(out / "filtered")
    return out, report, one


def test_the_set_has_the_pairs_that_the_decisions_name(
    filtered: tuple[Path, FilterReport, EvaluationSet],
) -> None:
    out, report, one = filtered
    rows = [row for row in decided(out) if row["reason"] == "held_out"]
    assert {(row["image_id"], row["text"]) for row in rows} == {
        (image.key, text) for image in one.images for text in image.texts
    }
    assert all(row["reasons"] == ["held_out"] and not row["keep"] for row in rows)
    bytes_of = {data for _, data in pairs()}
    assert all(picture in bytes_of for _, picture in one.read())
    assert (one.name, one.kind, report.num_held_out) == ("held_out", "retrieval", len(rows))
    assert 0.1 < len({image.concept for image in one.images}) / (NUM_IMAGES + 1) < 0.6
    assert report.evaluation_sets == {"held_out": one.sha256}
    assert report.metrics["filter/dropped/held_out"] == len(rows)


def test_a_cluster_is_held_out_whole_and_is_one_concept(filtered: tuple[Path, FilterReport, EvaluationSet]) -> None:
    out, _, one = filtered
    by_text = {row["text"]: row for row in decided(out)}
    concepts = {image.key: image.concept for image in one.images}
    for index in range(NUM_IMAGES):
        same = [by_text[f"a picture of thing {index}"], by_text[f"a copy of thing {index}"]]
        assert len({row["reason"] for row in same}) == 1  # its hash differs in a few bits at most
        assert len({concepts.get(str(row["image_id"])) for row in same}) == 1
    shared = [row["reason"] for row in decided(out) if row["text"] == "one text for three"]
    assert len(set(shared)) == 1
    short = [row for row in decided(out) if str(row["text"]).startswith("too short")]
    assert {row["reason"] for row in short} == {"text_too_short"}  # another rule drops them


def test_few_pairs_in_memory_give_the_same_set(
    filtered: tuple[Path, FilterReport, EvaluationSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report, one = filtered
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 20)
    monkeypatch.setattr(buckets, "_BUFFER_BYTES", 100)
    assert run(out / "raw", tmp_path) == report
    assert [found.sha256 for found in held_out_sets(tmp_path / "filtered")] == [one.sha256]
    assert decided(tmp_path) == decided(out)


def test_what_stays_and_shows_the_same_is_dropped_by_i5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that the clusters do not know are not torn apart silently: rule I5 drops them."""
    monkeypatch.setattr(hold_out.Clusters, "_join", lambda *_: None)
    assert run(stock_folder(tmp_path / "raw", pairs()), tmp_path) is not None
    [one] = held_out_sets(tmp_path / "filtered")
    by_text = {row["text"]: row for row in decided(tmp_path)}
    chosen = {image.key for image in one.images}
    images = {row["image_id"]: row for row in pq.read_table(tmp_path / "filtered/images.parquet").to_pylist()}
    facts = {row["key"]: row for row in pq.read_table(tmp_path / "filtered/facts").to_pylist()}
    num_dropped = 0
    for index in range(NUM_IMAGES):
        original, copy = by_text[f"a picture of thing {index}"], by_text[f"a copy of thing {index}"]
        for this, other in ((original, copy), (copy, original)):
            if this["image_id"] not in chosen and other["image_id"] in chosen:
                num_dropped += 1
                assert this["reasons"] == ["image_near_duplicate_of_test"]
                assert images[this["image_id"]]["evaluation_sets"] == ["held_out"]
                assert facts[str(this["key"])]["twin"] == f"held_out/{other['image_id']}"
                if this is original:
                    short = by_text[f"too short{index}"]
                    assert short["reasons"] == ["image_near_duplicate_of_test", "text_too_short"]
    assert num_dropped > 3
    kept = {row["image_id"] for row in decided(tmp_path) if row["keep"]}
    assert kept and not kept & chosen


def test_more_data_chooses_the_same(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"hold_out": 0.5})
    run(shards(tmp_path / "raw", 5), tmp_path / "whole", config)
    run(shards(tmp_path / "more", 9), tmp_path / "larger", config)
    [few], [many] = (held_out_sets(tmp_path / name / "filtered") for name in ("whole", "larger"))
    before, after = ({image.key for image in one.images} for one in (few, many))
    ids = {row["image_id"] for row in decided(tmp_path / "whole")}
    assert before == after & ids and before < after


def test_nothing_is_held_out_by_default(tmp_path: Path) -> None:
    raw = shards(tmp_path / "raw", 2)
    report = run(raw, tmp_path, CONFIG.model_copy(update={"hold_out": 0.0}))
    assert report.num_held_out == 0 and report.evaluation_sets == {}
    assert not (tmp_path / "filtered/held_out").exists()
    assert all(row["keep"] for row in decided(tmp_path))


def test_a_share_of_too_few_clusters_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(shards(tmp_path / "raw", 2), tmp_path, CONFIG.model_copy(update={"hold_out": 1e-6}))
    assert "warning: none of 3 clusters is held out; raise filter.hold_out (1e-06)" in capsys.readouterr().err
    assert not (tmp_path / "filtered/held_out").exists()
    assert all(row["keep"] for row in decided(tmp_path))


def test_another_set_of_that_name_is_refused(tmp_path: Path) -> None:
    evaluation = write_set(tmp_path / "evaluation", "held_out")
    with pytest.raises(DataError, match=r"held_out\.json: filter\.hold_out makes a set of this name; rename this one"):
        run(shards(tmp_path / "raw", 1), tmp_path, evaluation=evaluation)
