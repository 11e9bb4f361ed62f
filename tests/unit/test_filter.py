"""filter on small folders: the stage as a whole, stock img2dataset folders, nothing kept, the report."""

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align.cli import main
from align.config import load_params
from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.errors import ConfigError, DataError
from align.filter import filter_pairs
from align.pairs.filter_report import Example, FilterReport, Gallery, Vocabulary, write_pages
from tests.warc_records import picture

CONFIG = load_params().section(FilterConfig).model_copy(update={"num_frequent_ngrams": 10**6, "max_texts_per_image": 2})


def noise(seed: int, width: int = 240, height: int = 230) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def stock_folder(directory: Path, pairs: list[tuple[str | None, bytes | None]]) -> Path:
    """(caption, image or None for a failed download), as stock img2dataset writes them: none of our own columns."""
    directory.mkdir()
    keys = [f"{index:09d}" for index in range(len(pairs))]
    table = {
        "url": [f"http://x/{key}.png" for key in keys],
        "caption": [caption for caption, _ in pairs],
        "key": keys,
        "status": ["success" if data else "failed_to_download" for _, data in pairs],
        "error_message": [None if data else "HTTP Error 404" for _, data in pairs],
    }
    pq.write_table(pa.table(table), directory / "00000.parquet")
    with tarfile.open(directory / "00000.tar", "w") as tar:
        for key, (_, data) in zip(keys, pairs, strict=True):
            if data:
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return directory


def evaluation_set(directory: Path, image: bytes) -> Path:
    directory.mkdir()
    meta = {"key": "one", "concept": "c", "texts": ["a test text"], "class": None, "vendor": None}
    meta |= {"source_url": "http://t", "split": "query"}
    with tarfile.open(directory / "tiny.tar", "w") as tar:
        for name, data in (("one.jpg", image), ("one.json", json.dumps(meta).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256((directory / "tiny.tar").read_bytes()).hexdigest()
    header = {"schema_version": 1, "name": "tiny", "kind": "retrieval", "num_images": 1, "num_texts": 1}
    header |= {"num_concepts": 1, "sha256": digest, "description": "one picture"}
    (directory / "tiny.json").write_text(json.dumps(header))
    return directory


def run(raw: Path, out: Path, evaluation: Path | None = None, config: FilterConfig = CONFIG) -> FilterReport:
    engine = EngineConfig(memory_limit="200MB", num_threads=2, temp_directory=out / "scratch")
    return filter_pairs(config, engine, raw, evaluation or out / "none", out / "filtered", out / "reports")


def decisions(out: Path) -> dict[str, dict[str, object]]:
    return {row["key"]: row for row in pq.read_table(out / "filtered/decisions.parquet").to_pylist()}


def test_every_row_gets_a_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_image = noise(99)
    pairs: list[tuple[str | None, bytes | None]] = [
        ("a good long  text", noise(0)),
        (None, noise(1)),
        ("the image is gone", None),
        ("a broken picture here", b"no picture"),
        ("a small picture here", noise(2, 200, 300)),
        ("folder/of/some picture name.png", noise(3)),
        ("first text of three", noise(4)),
        ("second text of three", noise(4)),
        ("third text of three", noise(4)),
        ("copy of a test image", noise(99, 480, 460)),
        ("word " * 10_000, noise(5)),
        *((f"one text for many {'' if n < 11 else n}", noise(10 + n)) for n in range(12)),
    ]
    raw = stock_folder(tmp_path / "raw", pairs)
    report = run(raw, tmp_path, evaluation_set(tmp_path / "evaluation", test_image))
    found = decisions(tmp_path)
    reasons = [found[f"{index:09d}"]["reason"] for index in range(len(pairs))]
    assert reasons == [
        None,
        "text_too_short",
        "image_missing",
        "image_undecodable",
        "image_too_small",
        "text_is_filename",
        *["image_too_many_texts"] * 3,
        "image_near_duplicate_of_test",
        "text_too_long",
        *["text_shared_by_many_images"] * 11,
        None,
    ]
    first = found["000000000"]
    assert (first["text"], first["keep"], first["reasons"], first["image_key"]) == (
        "a good long text",
        True,
        [],
        "000000000",
    )
    assert first["image_id"] == hashlib.sha256(noise(0)).hexdigest()
    assert list(found) == sorted(found)
    assert (report.num_pairs, report.num_kept, report.evaluation_matches) == (23, 2, {"tiny": 1})
    assert report.funnel[-1].num_remaining == report.num_kept
    assert report.metrics["filter/dropped/text_shared_by_many_images"] == 11
    assert report.num_nsfw_scored == 2
    images = pq.read_table(tmp_path / "filtered/images.parquet").to_pylist()
    assert [image["image_id"] for image in images] == sorted(image["image_id"] for image in images)
    assert len(images) == 20
    twin = next(image for image in images if image["image_key"] == "000000009")
    assert (twin["width_px"], twin["height_px"], twin["evaluation_sets"]) == (480, 460, ["tiny"])
    assert "warning" not in capsys.readouterr().err


def test_equal_bytes_twice_and_no_evaluation_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0)), ("too short", noise(1))])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert run(raw, tmp_path / name).num_evaluation_sets == 0
        assert capsys.readouterr().err.count("rule I5 removes nothing") == 1
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [file.name for file in files] == [
        "decisions.parquet",
        "images.parquet",
        "funnel.png",
        "metrics.json",
        "report.html",
        "report.json",
        "text_lengths.png",
    ]
    for file in files:
        data = (tmp_path / "one" / file).read_bytes()
        assert data == (tmp_path / "two" / file).read_bytes()
        assert str(tmp_path).encode() not in data


def test_source_size_counts_where_img2dataset_shrank_the_picture(tmp_path: Path) -> None:
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0, 64, 64))])
    table = pq.read_table(raw / "00000.parquet")
    for name, value in (("original_width", 900), ("original_height", 299)):
        table = table.append_column(name, pa.array([value]))
    pq.write_table(table, raw / "00000.parquet")
    run(raw, tmp_path)
    assert decisions(tmp_path)["000000000"]["reasons"] == ["image_aspect_ratio"]


def test_nothing_kept_still_ends_well(tmp_path: Path) -> None:
    raw = stock_folder(tmp_path / "raw", [("no", noise(0)), ("", None)])
    report = run(raw, tmp_path)
    assert (report.num_kept, report.metrics["filter/keep_rate"], len(decisions(tmp_path))) == (0, 0.0, 2)
    assert "0 of 2 pairs kept" in (tmp_path / "reports/report.html").read_text()


def test_a_folder_without_a_row_ends_well(tmp_path: Path) -> None:
    raw = stock_folder(tmp_path / "raw", [("no", noise(0))])
    pq.write_table(pq.read_table(raw / "00000.parquet").slice(0, 0), raw / "00000.parquet")
    report = run(raw, tmp_path)
    assert (report.num_pairs, report.num_images, decisions(tmp_path)) == (0, 0, {})


def test_a_key_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0))])
    for end in ("tar", "parquet"):
        (raw / f"00001.{end}").write_bytes((raw / f"00000.{end}").read_bytes())
    with pytest.raises(DataError, match="key 000000000 occurs more than once"):
        run(raw, tmp_path)


def test_nsfw_pictures_are_shown_blurred(tmp_path: Path) -> None:
    sharp, codes = noise(7), ("image_nsfw", "text_too_long")
    examples = [
        Example(code, key, key, "t", 3, 9, 9, 1, 1, None, 0.9, None, "u", None)
        for code, key in zip(codes, "ab", strict=True)
    ]
    vocabulary = Vocabulary(num_ngrams=0, num_frequent=0, last_count=0)
    report = FilterReport(
        metrics={}, num_pairs=2, num_kept=0, num_images=2, num_nsfw_scored=1, num_evaluation_sets=0,
        evaluation_matches={}, vocabulary=vocabulary, funnel=[],
    )  # fmt: skip
    write_pages(report, CONFIG, {3: 2}, Gallery(examples, dict.fromkeys("ab", sharp), {}, 10**6), tmp_path)
    html = (tmp_path / "report.html").read_text()
    contrast = []
    for code in codes:
        uri = html.split(f"Dropped: {code}")[1].split("data:image/jpeg;base64,")[1].split('"')[0]
        contrast.append(float(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("L")).std()))
    assert contrast[0] < 0.7 * contrast[1]


def test_bounds_name_the_parameter() -> None:
    with pytest.raises(ConfigError, match=r"filter\.min_words"):
        load_params(overrides=["filter.min_words=30"]).section(FilterConfig)
    with pytest.raises(ConfigError, match=r"filter\.nsfw_threshold"):
        load_params(overrides=["filter.nsfw_threshold=2"]).section(FilterConfig)


def test_command_works_with_no_repository_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stock_folder(tmp_path / "stock", [("a good long text", noise(0)), ("too short", picture(300, 300))])
    monkeypatch.chdir(tmp_path)
    assert main(["filter", "--set", "paths.raw=stock", "--set", "paths.filtered=out"]) == 0
    assert pq.read_table(tmp_path / "out/decisions.parquet").num_rows == 2
    assert json.loads((tmp_path / "reports/filter/metrics.json").read_text())["filter/num_pairs"] == 2
    assert "1 of 2 pairs kept" in capsys.readouterr().err
    assert main(["filter", "--set", "paths.raw=nothing"]) == 1
    assert "align ingest" in capsys.readouterr().err
