"""filter on small folders: the stage as a whole, stock img2dataset folders, nothing kept, the report."""

import errno
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.config.filter import FilterConfig, ModelFile
from align.config.infrastructure import EngineConfig
from align.durable.files import sha256_folder
from align.errors import DataError
from align.filter.filter import FilterFolders, filter_pairs
from align.filter.measure import measure_shard
from align.filter.network import ImageNetwork
from align.formats import filtered
from align.formats.evaluation_sets.named import named_sets
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import raw_shards, read_table
from align.services.files.files import StoreFiles
from align.validate.validate import checked_counts
from tests.support import local_store, tiny_model
from tests.support.params import load_params
from tests.support.small_filter import evaluation_set, noise, shards, stock_folder
from tests.support.suites import suite
from tests.support.warc_records import picture

pytestmark = pytest.mark.usefixtures("quick")
ENGINE = (
    load_params().section(EngineConfig).model_copy(update={"memory_limit": "200MB", "num_threads": 2, "num_workers": 1})
)
CONFIG = load_params().section(FilterConfig).model_copy(update={"num_frequent_ngrams": 10**6, "max_texts_per_image": 2})


def run(raw, out, evaluation=None, config=CONFIG, policy=None):
    none = out / "none"
    none.mkdir(parents=True, exist_ok=True)
    folders = FilterFolders(raw, evaluation or none, policy or none, out / "filtered", out / "reports")
    return filter_pairs(config, ENGINE, folders)


def decisions(out):
    return {row["key"]: row for row in pq.read_table(out / "filtered/decisions").to_pylist()}


@pytest.mark.usefixtures("any_blocks")
def test_every_row_gets_a_decision(tmp_path, capsys):
    test_image = noise(99)
    pairs = [
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
    decided = decisions(tmp_path)
    reasons = [decided[f"{index:09d}"]["reason"] for index in range(len(pairs))]
    assert reasons == [
        None, "text_too_short", "image_missing", "image_undecodable", "image_too_small", "text_is_filename",
        *["image_too_many_texts"] * 3, "image_near_duplicate_of_test", "text_too_long",
        *["text_shared_by_many_images"] * 11, None,
    ]  # fmt: skip
    first = decided["000000000"]
    expected = {"text": "a good long text", "keep": True, "reasons": [], "image_key": "000000000"}
    assert {name: first[name] for name in expected} == expected
    assert first["image_id"] == hashlib.sha256(noise(0)).hexdigest()
    assert list(decided) == sorted(decided)
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


def test_equal_bytes_twice_and_no_evaluation_sets(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # with the figure, and a network that is opened twice
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0)), ("too short", noise(1))])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        assert run(raw, tmp_path / name).num_evaluation_sets == 0
        assert capsys.readouterr().err.count("rule I5 removes nothing") == 1
    one, two = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "two")
    tables = ["filtered/decisions/00000.parquet", "filtered/facts/00000.parquet", "filtered/images.parquet"]
    report = {f"reports/{name}" for name in ("report.html", "report.json", "metrics.json")}
    others = {"reports/funnel.png", "filtered/.align.json", "reports/.align.json"}
    assert one.keys() == {*tables} | report | others
    schemas = filtered.DECISIONS_SCHEMA, filtered.FACTS_SCHEMA, filtered.IMAGES_SCHEMA
    for name, schema in zip(tables, schemas, strict=True):
        assert pq.read_schema(tmp_path / "one" / name).equals(schema)
    assert one == two
    assert not any(str(tmp_path).encode() in data for data in one.values())


def test_source_size_counts_where_img2dataset_shrank_the_picture(tmp_path):
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0, 64, 64))])
    table = pq.read_table(raw / "00000.parquet")
    for name, value in (("original_width", 900), ("original_height", 299)):
        table = table.append_column(name, pa.array([value]))
    pq.write_table(table, raw / "00000.parquet")
    run(raw, tmp_path)
    assert decisions(tmp_path)["000000000"]["reasons"] == ["image_aspect_ratio"]


def test_some_columns_are_those_of_the_whole_table(tmp_path):
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0)), ("a dead link", None)])
    [shard] = raw_shards(raw)
    whole = read_table(shard)
    assert whole["sha256"].to_pylist() == [hashlib.sha256(noise(0)).hexdigest(), None]  # stock folders lack it
    for wanted in (["sha256"], ["image_key"], ["caption", "page_url"], ["key", "sha256", "image_key"]):
        assert read_table(shard, wanted).to_pydict() == {name: whole[name].to_pylist() for name in wanted}


def test_languages_are_guessed_of_what_is_kept_or_where_a_rule_asks(tmp_path):
    pairs = [("a photograph of the old town hall", noise(0)), ("das alte Rathaus und die kleine Kirche", noise(1))]
    raw = stock_folder(tmp_path / "raw", [*pairs, ("the harbour and the old town hall", None)])
    for name, asked, languages in (
        ("no rule", None, ["en", "de", None]), ("a rule", ("en",), ["en", "de", "en"])
    ):  # fmt: skip
        out = tmp_path / name
        report = run(raw, out, config=CONFIG.model_copy(update={"languages": asked}))
        for file in ("decisions", "facts"):
            assert pq.read_table(out / f"filtered/{file}")["language"].to_pylist() == languages
        counts = {one.name: (one.num_pairs, one.num_kept) for one in report.overview.languages}
        assert counts == {"en": (2, 1), "de": (1, asked is None)}


def test_nothing_kept_and_a_folder_without_a_row_end_well(tmp_path):
    raw = stock_folder(tmp_path / "raw", [("no", noise(0)), ("", None)])
    report = run(raw, tmp_path)
    assert (report.num_kept, report.metrics["filter/keep_rate"], len(decisions(tmp_path))) == (0, 0.0, 2)
    assert "0 of 2 pairs kept" in (tmp_path / "reports/report.html").read_text()
    pq.write_table(pq.read_table(raw / "00000.parquet").slice(0, 0), raw / "00000.parquet")
    report = run(raw, tmp_path)
    assert (report.num_pairs, report.num_images, decisions(tmp_path)) == (0, 0, {})


def test_a_key_that_occurs_twice_is_an_error(tmp_path):
    raw = stock_folder(tmp_path / "raw", [("a good long text", noise(0))])
    for end in ("tar", "parquet"):
        (raw / f"00001.{end}").write_bytes((raw / f"00000.{end}").read_bytes())
    with pytest.raises(DataError, match=r"keys of shard 00001 \(from 000000000\) do not come after"):
        run(raw, tmp_path)
    table = pq.read_table(raw / "00000.parquet")
    pq.write_table(pa.concat_tables([table, table]), raw / "00000.parquet")
    with pytest.raises(DataError, match="key 000000000 occurs more than once"):
        run(raw, tmp_path)


def bytes_of(out):
    files = [path for name in ("filtered", "reports") for path in (out / name).rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_after_a_failure_nothing_is_measured_twice_under_the_same_parameters(tmp_path, monkeypatch, capsys):
    raw, evaluation = shards(tmp_path / "raw", 4), evaluation_set(tmp_path / "evaluation", noise(2))

    measured = []
    bad = {2}

    def measure(work, out, item):
        measured.append(item[0])
        if item[0] in bad:
            raise DataError("cut off")
        measure_shard(work, out, item)

    monkeypatch.setattr("align.filter.filter.measure_shard", measure)
    other = CONFIG.model_copy(update={"min_words": 5})
    for config, expected, num_discarded in ((CONFIG, [0, 1, 2], 0), (CONFIG, [2], 0), (other, [0, 1, 2], 1)):
        with pytest.raises(DataError, match="cut off"):
            run(raw, tmp_path / "resumed", evaluation, config)
        assert (measured, capsys.readouterr().err.count("discarding the work")) == (expected, num_discarded)
        measured.clear()
    bad.clear()
    assert (run(raw, tmp_path / "resumed", evaluation, other).num_pairs, measured) == (8, [2, 3])
    run(raw, tmp_path / "whole", evaluation, other)
    assert bytes_of(tmp_path / "resumed") == bytes_of(tmp_path / "whole")


def test_a_run_that_ends_while_it_removes_its_results_has_nothing_left_to_do(tmp_path, monkeypatch):
    raw = shards(tmp_path / "raw", 2)
    run(raw, tmp_path / "calm")

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("align.filter.filter.Work.drop", cut_off)
        run(raw, tmp_path / "cut off")
    shutil.rmtree(tmp_path / "cut off/.filtered.part/written")  # it had begun
    with monkeypatch.context() as patch:
        patch.setattr("align.filter.filter._decide_all", cut_off)
        report = run(raw, tmp_path / "cut off")
    assert report == run(raw, tmp_path / "again")
    assert bytes_of(tmp_path / "cut off") == bytes_of(tmp_path / "calm")


@pytest.mark.parametrize("column", ["reasons", "num_words", "phash"])  # of decisions, facts, known_images alone
def test_a_full_disk_while_files_are_packed_is_no_end_and_no_loss(tmp_path, monkeypatch, column):
    raw = stock_folder(tmp_path / "raw", [(f"a text number {n} here", noise(n)) for n in range(3)])
    run(raw, tmp_path / "calm")

    class FullDisk(pq.ParquetWriter):
        def write_table(self, table, row_group_size=None):
            if column in table.column_names:
                raise OSError(errno.ENOSPC, "no space left")
            super().write_table(table, row_group_size)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(pq, "ParquetWriter", FullDisk)
        run(raw, tmp_path / "full")
    assert not (tmp_path / "full/filtered").exists()
    run(raw, tmp_path / "full")
    assert bytes_of(tmp_path / "full") == bytes_of(tmp_path / "calm")


def test_an_image_in_many_shards_is_one_image(tmp_path):
    run(shards(tmp_path / "raw", 3), tmp_path)
    facts = pq.read_table(tmp_path / "filtered/facts").to_pylist()
    assert [row["key"] for row in facts] == sorted(row["key"] for row in facts)
    assert [(row["shard"], row["num_texts"], row["num_images"]) for row in facts] == [
        (f"{shard:05d}", 1, 1) for shard in range(3) for _ in range(2)
    ]
    assert len({row["nsfw_score"] for row in facts[1::2]}) == 1
    assert pq.read_table(tmp_path / "filtered/images.parquet").num_rows == 4


def test_evaluation_images_get_all_threads_where_shards_share_them(tmp_path, monkeypatch):
    given = []

    class Seen(ImageNetwork):
        def __init__(self, classifier, embedder, device, num_threads):
            given.append(num_threads)
            super().__init__(classifier, embedder, device, num_threads)

    def in_this_process(_, task, items):
        with task.resource(None) as kept:
            yield from (task.function(kept, item) for item in items)

    monkeypatch.setattr("align.filter.compare.ImageNetwork", Seen)
    monkeypatch.setattr("align.services.executors.executors.LocalExecutor.map", in_this_process)
    monkeypatch.setitem(globals(), "ENGINE", ENGINE.model_copy(update={"num_workers": 2, "num_threads": 4}))
    run(shards(tmp_path / "raw", 2), tmp_path, evaluation_set(tmp_path / "evaluation", noise(2)))
    assert given == [4, 2, 2]  # the images, then two shards


def test_opted_out_pairs_are_dropped_first(tmp_path):
    raw = stock_folder(tmp_path / "raw", [(f"a good text {n}", noise(n)) for n in range(3)] + [("no", noise(9))])
    gone = hashlib.sha256(noise(1)).hexdigest()
    entries = [Entry("image_id", gone, "", "2026-01-01"), Entry("url", "http://x/000000003.png", "", "2026-01-01")]
    (tmp_path / "policy").mkdir()
    write_opted_out(tmp_path / "policy", OptedOut(entries))
    report = run(raw, tmp_path, policy=tmp_path / "policy")
    assert [row["reasons"] for row in decisions(tmp_path).values()] == [
        [], ["opted_out"], [], ["opted_out", "text_too_short"],
    ]  # fmt: skip
    facts = pq.read_table(tmp_path / "filtered/facts")
    assert facts["opted_out"].to_pylist() == [None, f"image_id:{gone}", None, "url:http://x/000000003.png"]
    assert report.metrics["filter/dropped/opted_out"] == 2


def test_rules_beyond_the_papers(tmp_path):
    packaged = tmp_path / "packaged"
    shutil.copytree(tiny_model.write(tmp_path), packaged / "artifacts/finetuned")
    given = ModelFile(path=str(packaged), sha256=sha256_folder(packaged))
    pairs = [
        ("a black dog runs over the green grass", noise(0)),
        ("ein Hund läuft über die grüne Wiese", noise(1)),
        ("write to jane.doe@example.org for this picture", noise(2)),
        ("a black dog runs over the green grass again", noise(0)),
    ]
    raw = stock_folder(tmp_path / "raw", pairs)
    beyond = {"languages": ("en",), "drop_personal_data": True, "drop_repeats": "image", "similarity_model": given}
    run(raw, tmp_path, config=CONFIG.model_copy(update=beyond | {"min_similarity": -1.0}))
    assert [row["reasons"] for row in decisions(tmp_path).values()] == [
        [], ["text_other_language"], ["text_personal_data"], ["image_repeat"],
    ]  # fmt: skip
    facts = pq.read_table(tmp_path / "filtered/facts").to_pylist()
    assert [row["similarity"] is None for row in facts] == [False, True, True, False]
    assert [row["language"] for row in facts] == ["en", "de", "en", "en"]
    run(raw, tmp_path, config=CONFIG.model_copy(update=beyond | {"min_similarity": 1.0, "languages": None}))
    assert [row["reasons"] for row in decisions(tmp_path).values()] == [
        ["pair_low_similarity"], ["pair_low_similarity"], ["text_personal_data"], ["pair_low_similarity"],
    ]  # fmt: skip
    share = {"min_similarity": -1.0, "keep_similarity_share": 0.34, "languages": None, "drop_repeats": None}
    run(raw, tmp_path, config=CONFIG.model_copy(update=beyond | share))
    facts = pq.read_table(tmp_path / "filtered/facts").to_pylist()
    best = max(range(4), key=lambda row: (facts[row]["similarity"] or -2, -row))
    assert [row for row, one in enumerate(decisions(tmp_path).values()) if not one["reasons"]] == [best]


def test_pairs_without_an_allowed_licence_are_dropped(tmp_path):
    raw = stock_folder(tmp_path / "raw", [(f"a good long text {number}", noise(number)) for number in range(3)])
    path, by = raw / "00000.parquet", "https://creativecommons.org/licenses/by"
    table = pq.read_table(path)
    pq.write_table(table.append_column("licence", pa.array([f"{by}/4.0/", f"{by}-nc/4.0/", None])), path)
    for licences, dropped in (((f"{by}/",), [[], ["pair_licence"], ["pair_licence"]]), ((), [[], [], []])):
        run(raw, tmp_path, config=CONFIG.model_copy(update={"licences": licences}))
        assert [row["reasons"] for row in decisions(tmp_path).values()] == dropped


def test_command_works_with_no_repository_around(tmp_path, monkeypatch, capsys):
    stock_folder(tmp_path / "stock", [("a good long text", noise(0)), ("too short", picture(300, 300))])
    monkeypatch.chdir(tmp_path)
    command = ["filter", "--set", "paths.raw=stock", "--set", "paths.filtered=out", "--set", "paths.evaluation=sets"]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("align: error: sets: no such folder of evaluation sets; make it")
    Path("sets").mkdir()
    assert main(command) == 0
    assert pq.read_table(tmp_path / "out/decisions").num_rows == 2
    assert json.loads((tmp_path / "reports/filter/metrics.json").read_text())["filter/num_pairs"] == 2
    assert "1 of 2 pairs kept" in capsys.readouterr().err
    assert main(["filter", "--set", "paths.raw=nothing"]) == 1
    assert "align ingest" in capsys.readouterr().err


def test_pictures_of_a_suite_are_kept_out_and_what_cannot_be_read_is_said(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(noise(99))
    (tmp_path / "captions.txt").write_text("1.jpg,a test picture\ngone.jpg,of nothing\n")
    entry = {"name": "mine", "path": str(tmp_path / "captions.txt"), "format": "retrieval_txt", "tasks": ["retrieval"]}
    file = suite(tmp_path, entry)
    pairs = [("a good long text", noise(0)), ("copy of a test image", noise(99, 480, 460))]
    raw = stock_folder(tmp_path / "raw", list(pairs))
    store = local_store.config(tmp_path, None)
    folders = FilterFolders(raw, file, tmp_path / "p", tmp_path / "filtered", tmp_path / "reports")
    report = filter_pairs(CONFIG, ENGINE, folders, store=store)
    assert report is not None
    decided = decisions(tmp_path)
    assert [row["reason"] for row in decided.values()] == [None, "image_near_duplicate_of_test"]
    assert "1 pictures of evaluation sets cannot be read, so rule I5 does not" in capsys.readouterr().err

    sets = named_sets(file, StoreFiles(store))
    assert checked_counts(sets, report.evaluation_sets) == {"checked_sets": 1, "unchecked_sets": 0}
    (tmp_path / "images/1.jpg").write_bytes(noise(98))
    changed = named_sets(file, StoreFiles(store))
    assert checked_counts(changed, report.evaluation_sets)["unchecked_sets"] == 1


def test_texts_of_other_folders_have_a_length_limit(tmp_path):
    captions = [
        "three words " + "x" * 500_000,  # one word fills a page
        "a text of " + " " * 10_000 + " two ends",  # what was cut is too long, though little is left of it
        "a text of  " + " " * 500 + " two ends ",
        "an endless " + "w" * 989,
        "an endless " + "w" * 990,
        "two" + "\u0315\u0300" * 40_000 + " marks here",
    ]
    pairs = [(caption, noise(row)) for row, caption in enumerate(captions)]
    run(stock_folder(tmp_path / "raw", pairs), tmp_path, config=CONFIG.model_copy(update={"min_words": 2}))
    decided, long = list(decisions(tmp_path).values()), "text_too_long"
    assert [row["reasons"] for row in decided] == [[long], [long], [], [], [long], ["text_too_short", long]]
    assert max(len(str(row["text"])) for row in decided) == 1000
    facts = pq.read_table(tmp_path / "filtered/facts", columns=["num_characters"]).to_pydict()
    assert facts["num_characters"] == [8192, 8192, 18, 1000, 1001, 8192]
