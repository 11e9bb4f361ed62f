"""`filter.drop_repeats: semantic`: of images that look alike the first one stays, however shards divide them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from align.cli import main
from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.errors import ConfigError, DataError
from align.filter import compare, near_duplicates
from align.filter.filter import FilterFolders, filter_pairs
from align.filter.near_duplicates import alike_in, homes_of, write_embeddings
from align.filter.report import FilterReport
from align.filter.work_folder import NumberedShard, WorkFolder
from tests.support.params import load_params
from tests.support.small_filter import copy_of, noise, quicken, shards, stock_folder

ENGINE = (
    load_params().section(EngineConfig).model_copy(update={"memory_limit": "200MB", "num_threads": 2, "num_workers": 1})
)
CONFIG = (
    load_params()
    .section(FilterConfig)
    .model_copy(update={"num_frequent_ngrams": 10**6, "max_images_per_text": 100, "drop_repeats": "semantic"})
)
WIDTH, CUT = 16, 0.9


def run(raw: Path, out: Path, config: FilterConfig = CONFIG) -> FilterReport:
    (out / "none").mkdir(parents=True, exist_ok=True)
    folders = FilterFolders(raw, out / "none", out / "none", out / "filtered", out / "reports")
    return filter_pairs(config, ENGINE, folders)


def rows_of(out: Path) -> dict[str, dict[str, object]]:
    """What was decided and what is known of each pair, by its text."""
    facts = pq.read_table(out / "filtered/facts").to_pylist()
    decisions = pq.read_table(out / "filtered/decisions").to_pylist()
    return {row["text"]: fact | row for row, fact in zip(decisions, facts, strict=True)}


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float16]:
    """2,500 images around 40 points, some of them in chains whose ends are unlike."""
    random = np.random.default_rng(0)
    drawn = random.normal(size=(40, WIDTH))[random.integers(0, 40, 2500)] + random.normal(size=(2500, WIDTH)) * 0.35
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def found(folder: Path, vectors: NDArray[np.float16], ends: Iterable[int]) -> dict[str, tuple[str, float]]:
    """What `alike_in` finds if files end at these rows, each with a row of another cluster before and after."""
    slices, start, other = [], 0, vectors[:1] * 0
    for end in ends:
        path = folder / f"{start}.arrow"
        rows = np.concatenate([other, vectors[start:end], other])
        write_embeddings(path, zip(("x", *map(str, range(start, end)), "y"), rows, strict=True), WIDTH)
        slices.append((path, 1, 1 + end - start))
        start = end
    room = np.zeros((start, WIDTH), np.float16)
    return {one.image_id: (one.reference, one.cosine) for one in alike_in(slices, room, CUT)}


def test_of_images_that_look_alike_the_first_stays(
    tmp_path: Path, vectors: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    stay: list[int] = []
    expected: dict[str, tuple[str, float]] = {}
    for row in range(len(vectors)):  # one at a time, in order
        first = next((other for other in stay if cosines[row, other].round(4) > CUT), None)
        if first is None:
            stay.append(row)
        else:
            expected[str(row)] = str(first), pytest.approx(cosines[row, first], abs=1e-4)
    assert len(stay) > 200 and len(expected) > 1000
    goes_before = [int(name) for name in expected]
    assert any((cosines[row, [one for one in goes_before if one < row]] > CUT).any() for row in stay)  # ends of chains
    one = found(tmp_path, vectors, [2500])
    assert one == expected
    assert found(tmp_path, vectors, [7, 7, 1031, 1032, 2500]) == one
    monkeypatch.setattr(near_duplicates, "_BLOCK_ROWS", 64)
    assert found(tmp_path, vectors, [2500]) == one
    (tmp_path / "0.arrow").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"0\.arrow: no embeddings here .*; run `align filter` again"):
        list(alike_in([(tmp_path / "0.arrow", 0, 1)], vectors, CUT))


def test_the_cut_itself_is_not_above_it_and_a_cluster_is_the_nearest(tmp_path: Path) -> None:
    rows = np.eye(WIDTH, dtype=np.float16)[[0, 0, 1]]
    rows[1, :2] = CUT, (1 - CUT**2) ** 0.5
    at = round(float(rows[1, 0]), 4)
    write_embeddings(tmp_path / "0.arrow", zip("abc", rows, strict=True), WIDTH)
    for cut, expected in ((at, []), (at - 1e-4, ["b"]), (-1.0, ["b", "c"])):
        assert [one.image_id for one in alike_in([(tmp_path / "0.arrow", 0, 3)], rows.copy(), cut)] == expected
    assert homes_of(rows, np.eye(WIDTH, dtype=np.float32)[[1, 0]]).tolist() == [1, 1, 0]
    assert homes_of(rows[:0], np.eye(WIDTH, dtype=np.float32)).tolist() == []


@pytest.mark.usefixtures("quick")
def test_an_image_goes_with_its_pairs_and_the_first_that_stays_keeps_all(tmp_path: Path) -> None:
    pairs: list[tuple[str | None, bytes | None]] = [
        ("short", noise(1)),
        ("the first of these", noise(0)),
        ("a copy of it", copy_of(noise(0))),
        ("another text for it", noise(0)),
        ("another copy of it", copy_of(noise(0), 50)),
        ("its copy came first", copy_of(noise(1))),
        ("so this one goes", noise(1)),
        ("broken bytes stay out", b"no picture"),
        ("its picture is gone", None),
        ("something else here", noise(2)),
    ]
    report = run(stock_folder(tmp_path / "raw", pairs), tmp_path)
    rows = rows_of(tmp_path)
    assert [row["reason"] for row in rows.values()] == [
        "text_too_short", None, "image_semantic_repeat", None, "image_semantic_repeat", None, "image_semantic_repeat",
        "image_undecodable", "image_missing", None,
    ]  # fmt: skip
    for text, row in rows.items():
        stays = {"a": "the first of these", "s": "its copy came first"}[text[0]] if row["repeats"] else None
        assert row["twin"] == (stays and rows[stays]["image_id"]) and (row["twin_cosine"] is None) == (stays is None)
        assert row["num_evaluation_sets"] in (0, None)
    [funnel] = [row for row in report.funnel if row.reason == "image_semantic_repeat"]
    assert (funnel.num_alone, funnel.num_first) == (3, 3)
    assert funnel.drops_where == "repeats AND twin_cosine > 0.95"
    off = CONFIG.model_copy(update={"drop_repeats": None})
    run(tmp_path / "raw", tmp_path, off)
    kept = {text for text, row in rows_of(tmp_path).items() if row["keep"]}
    assert kept == {text for text, row in rows.items() if row["reason"] in (None, "image_semantic_repeat")}
    assert {row["twin"] for row in rows_of(tmp_path).values()} == {None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards with a copy of one picture in each, and what a run that nothing stops makes of them."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        run(shards(folder / "raw", 4, lambda index: copy_of(noise(50), 60 + index)), folder / "out")
    return folder


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", ["cluster_shard", "compare_clusters"])
def test_a_killed_run_resumes_at_its_shard(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    raw = whole / "raw"
    reasons = [row["reason"] for row in pq.read_table(whole / "out/filtered/decisions").to_pylist()]
    assert reasons == [None, None, *[None, "image_semantic_repeat"] * 3]
    done: list[int] = []
    real, lose = getattr(compare, step), [True]

    def lost(work: WorkFolder, item: NumberedShard, **names: list[str]) -> None:
        if item[0] == 2 and lose:
            raise KeyboardInterrupt
        done.append(item[0])
        real(work, item, **names)

    monkeypatch.setattr(compare, step, lost)
    with pytest.raises(KeyboardInterrupt):
        run(raw, tmp_path / "resumed")
    lose.clear()
    run(raw, tmp_path / "resumed")
    assert done == [0, 1, 2, 3]
    one, two = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.parquet")}
        for out in (whole / "out", tmp_path / "resumed")
    )
    assert one == two and len(one) == 9


@pytest.mark.usefixtures("quick")
def test_it_is_on_where_no_image_is_left(tmp_path: Path) -> None:
    raw = stock_folder(tmp_path / "raw", [("short", noise(0)), ("its picture is gone", None)])
    assert run(raw, tmp_path).num_kept == 0


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [("drop_repeats=semantics", "drop_repeats"), ("semantic_cosine_above=1.5", "semantic_cosine_above"),
     ("semantic_cosine_above=null", "semantic_cosine_above")],
)  # fmt: skip
def test_wrong_values_name_the_parameter(setting: str, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=rf"filter\.{wrong}"):
        load_params(overrides=[f"filter.{setting}"]).section(FilterConfig)
    assert main(["filter", "--set", f"filter.{setting}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
