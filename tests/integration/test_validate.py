"""The gates over tables and over shards on a real Great Expectations; unit/validate tests what they measure."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.config.filter import FilterConfig
from align.config.validate import MaxDrift, ValidateConfig
from align.errors import ConfigError, DataError, GateError
from align.filter.rules import active
from align.formats.shards import read_manifest
from align.formats.verdict import require_passed
from align.pairs.perceptual_hash import image_signals
from align.validate.tables import JudgedData
from align.validate.validate import accept, read_checked_sets, set_reference, validate
from align.validate.validate_shards import validate_shards
from tests.support import small_data, small_shards
from tests.support.evaluation_sets import write_set
from tests.support.gates import ENGINE, pairs, rewrite
from tests.support.params import PARAMS_FILE, load_params, sets
from tests.support.small_data import Pair
from tests.support.small_shards import make_shards, many_pairs

WIDE = dict.fromkeys(MaxDrift.model_fields, 1.0)
CONFIG = ValidateConfig(
    min_pairs=10, min_success_share=0.9, keep_rate=(0.5, 0.8), keep_rate_by_source={},
    dropped_share={"image_too_small": (0.0, 0.2), "text_too_short": (0.1, 0.5), "image_missing": (0.0, 0.05)},
    min_evaluation_sets=1, max_evaluation_hash_share=0.0, sample_rows=15, max_drift=MaxDrift(**WIDE),
)  # fmt: skip
SETS = {"concepts": "f" * 64}
IMPOSSIBLE = {"width_px": 0, "height_px": 0, "nsfw_score": 1.5, "num_texts": -1}
DECISIONS, IMAGES = "filtered/decisions/00000.parquet", "filtered/images.parquet"


def judge(root, config=CONFIG, *, checked_sets=SETS, data=None):
    tables = data or root
    (root / "evaluation").mkdir(exist_ok=True)
    judged = JudgedData(tables / "raw", tables / "filtered", root / "evaluation", checked_sets)
    return validate(config, ENGINE, judged, policy=root / "policy", reports=root / "quality")


@pytest.fixture
def undrawn(monkeypatch):
    """For tests of what the gate says; they look at no figure, which is a third of its work."""
    monkeypatch.setattr("align.validate.validate.png", lambda figure: b"a figure")
    monkeypatch.setattr("align.display.html.svg", lambda figure: "<svg ></svg>")


def test_good_data_passes_and_equal_data_gives_equal_reports(tmp_path):
    small_data.write(tmp_path, pairs(), pairs_per_shard=7)
    report = judge(tmp_path)
    assert report.passed
    assert all(item.passed for item in report.expectations)
    assert len({item.name for item in report.expectations}) == len(report.expectations)  # `--accept` needs one meaning
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", item.name) for item in report.expectations)
    assert report.metrics["quality/keep_rate"] == 0.7
    of = {item.name: (item.value, item.low, item.high) for item in report.expectations}
    assert of["keep-rate"] == (0.7, 0.5, 0.8) and of["raw-null-keys"] == (0, 0, 0) and of["raw-pairs"][2] is None
    assert of["raw-columns"] == of["raw-status"] == (None, None, None)  # they are about no single figure
    assert not [item for item in report.expectations if item.name.startswith("drift")]
    first = {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()}
    judge(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()} == first
    pages = {"report.html", "distributions.png"}
    assert set(first) == {".align.json", "report.json", "metrics.json", "verdict.json", *pages}
    page = first["report.html"].decode()
    assert "share dropped as image_too_small" in page
    assert "No reference: drift was not measured" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)


def test_params_of_the_project_are_a_valid_gate():
    config = load_params().section(ValidateConfig)
    assert config.keep_rate[0] < config.keep_rate[1]
    assert set(config.dropped_share) == set(active(load_params().section(FilterConfig)))


def drop_column(root):
    path = root / DECISIONS
    pq.write_table(pq.read_table(path).drop_columns(["reasons"]), path)


@pytest.mark.parametrize(("spoil", "message"), [
    (
        lambda root: rewrite(root / DECISIONS, lambda rows: [rows[0] | {"key": "000000001"}, *rows[1:]]),
        "decisions-duplicate-keys: pairs with more than one decision: observed 1, expected 0",
    ),
    (
        lambda root: rewrite(root / IMAGES, lambda rows: [row | IMPOSSIBLE for row in rows]),
        r"images-width-px: .*: observed 15 of 15 rows fail, such as 0, expected at least 1 "
        r"\(3 more failed: images-height-px, images-nsfw-score, images-num-texts\)",
    ),
    (drop_column, "decisions-columns: columns of decisions: observed .*, expected key, keep, reason, reasons"),
])  # fmt: skip
def test_each_fault_is_named_with_observed_and_threshold(tmp_path, spoil, message):
    small_data.write(tmp_path, pairs())
    spoil(tmp_path)
    with pytest.raises(GateError, match=message) as raised:
        judge(tmp_path)
    verdict = json.loads((tmp_path / "quality" / "report.json").read_text())
    assert verdict["passed"] is False
    assert f"quality gate: {verdict['failure']}" in str(raised.value)
    assert "What failed" in (tmp_path / "quality" / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_bands_hold_at_their_boundary(tmp_path):
    """Both ends are included; values just beyond fail, each under its own name."""
    small_data.write(tmp_path, [*pairs(), Pair("gone", None, reason="image_missing")])
    exact = {"image_too_small": 3 / 21, "text_too_short": 3 / 21, "image_missing": 1 / 21}
    edges = {
        "keep_rate": (14 / 21, 14 / 21), "min_pairs": 21, "min_success_share": 20 / 21,
        "dropped_share": {name: (share, share) for name, share in exact.items()},
    }  # fmt: skip
    assert judge(tmp_path, CONFIG.model_copy(update=edges)).passed
    beyond = {
        "keep_rate": (0.667, 0.9), "min_pairs": 22, "min_success_share": 0.953, "min_evaluation_sets": 2,
        "dropped_share": {
            "image_too_small": (0.0, 0.142), "text_too_short": (0.143, 0.5), "image_missing": (0.0, 0.047),
        },
    }  # fmt: skip
    with pytest.raises(GateError, match=r"raw-pairs: pairs: observed 21, expected at least 22 \(6 more failed: "):
        judge(tmp_path, CONFIG.model_copy(update=beyond))
    report = json.loads((tmp_path / "quality" / "report.json").read_text())
    assert {item["name"] for item in report["expectations"] if not item["passed"]} == {
        "raw-pairs", "raw-success-share", "keep-rate", "checked-sets", "dropped-image-too-small",
        "dropped-text-too-short", "dropped-image-missing",
    }  # fmt: skip


def put_evaluation_image(root, image):
    """An evaluation set with this image; returns what a filter that searched for it reports."""
    row = {"key": "a", "concept": "c", "texts": ["t"], "class": None, "vendor": None, "split": "query"}
    files = {"a.jpg": image, "a.json": json.dumps(row).encode()}
    write_set(root / "evaluation", members=files, num_images=1)
    return {"concepts": json.loads((root / "evaluation" / "concepts.json").read_text())["sha256"]}


@pytest.mark.usefixtures("undrawn")
def test_evaluation_images_are_searched_for_independent_of_the_filter(tmp_path):
    """The filter reports none; the gate knows their bytes, and the hash of a copy."""
    phash = image_signals(small_data.jpeg(500), 10**9).phash
    small_data.write(tmp_path, [Pair("a copy of it", 0, phash=phash), *pairs()[1:]])
    sets = put_evaluation_image(tmp_path, small_data.jpeg(500))
    share = "kept-evaluation-hashes: share of kept pairs .*: observed 7.143%, expected 0%"
    with pytest.raises(GateError, match=share):  # 1 of 14
        judge(tmp_path, checked_sets=sets)
    lenient = CONFIG.model_copy(update={"max_evaluation_hash_share": 0.08})
    assert judge(tmp_path, lenient, checked_sets=sets).passed
    with pytest.raises(GateError, match=r"unchecked-sets: .* as they are now: observed 1, expected 0"):  # another tar
        judge(tmp_path, lenient)
    sets = put_evaluation_image(tmp_path, small_data.jpeg(3))  # the picture of pair 3
    with pytest.raises(GateError, match=r"kept-evaluation-bytes: .* same bytes as an evaluation image: observed 1"):
        judge(tmp_path, lenient, checked_sets=sets)


def write_languages(root, rows, num_german=0):
    small_data.write(root, rows)
    path = root / DECISIONS
    table = pq.read_table(path)
    languages = ["de"] * num_german + ["en"] * (len(table) - num_german)
    pq.write_table(table.drop_columns(["language"]).append_column("language", pa.array(languages)), path)
    return root


@pytest.mark.usefixtures("undrawn")
def test_drift_is_found_when_the_data_moves_and_silent_when_not(tmp_path):
    old = write_languages(tmp_path / "old", pairs())
    assert judge(tmp_path, data=old).passed
    set_reference(tmp_path / "quality", tmp_path / "policy", "Ada", "2026-01-31")
    none = CONFIG.model_copy(update={"max_drift": MaxDrift(**dict.fromkeys(WIDE, 0.0))})
    same = judge(tmp_path, none, data=old)
    assert [item.observed for item in same.expectations if item.name.startswith("drift")] == ["0%"] * 4

    # 15 of 20 kept instead of 14; 3 of 15 texts longer, 4 of 15 in German, all images larger
    rows = [Pair(f"a text that is so much longer {index}", index) for index in range(3)]
    new = write_languages(tmp_path / "new", [*rows, *pairs()[3:14], Pair("picture number 14", 14), *pairs()[15:]], 4)
    rewrite(new / IMAGES, lambda rows: [row | {"height_px": 700, "width_px": 900} for row in rows])
    moved = {"keep_rate": 0.05, "text_length": 0.2, "image_size": 1.0, "language": 0.266667}
    report = judge(tmp_path, CONFIG.model_copy(update={"max_drift": MaxDrift(**moved)}), data=new)  # at the limit
    assert {name: report.metrics[f"quality/drift/{name}"] for name in moved} == moved
    below = MaxDrift(**{name: value - 0.001 for name, value in moved.items()})
    with pytest.raises(
        GateError, match=r"drift-keep-rate: drift of the keep rate: observed 5%, expected 0% to 4.9% \(3 more failed"
    ):
        judge(tmp_path, CONFIG.model_copy(update={"max_drift": below}), data=new)
    assert "The reference was set on 2026-01-31 by Ada" in (tmp_path / "quality" / "report.html").read_text()


def test_without_a_report_of_the_filter_there_are_no_checked_sets(tmp_path):
    with pytest.raises(DataError, match="run `align filter` first"):
        read_checked_sets(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_command_accepts_and_sets_the_reference(tmp_path, monkeypatch, capsys):
    """As a person types it: run, see the failure, accept it, run again, set the reference."""
    small_data.write(tmp_path / "data", pairs())
    (tmp_path / "reports" / "filter").mkdir(parents=True)
    (tmp_path / "reports" / "filter" / "report.json").write_text(json.dumps({"evaluation_sets": SETS}))
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    values = {
        "min_pairs": 10, "keep_rate": "[0.71, 0.9]", "min_evaluation_sets": 1,
        "dropped_share": json.dumps({key: [0.0, 1.0] for key in load_params().values["validate"]["dropped_share"]}),
    }  # fmt: skip
    own = (f"validate.{key}={value}" for key, value in values.items())
    settings = ["--params", str(PARAMS_FILE), *sets("paths.evaluation=none", *own)]

    def run(*words):
        """Exit code and last line."""
        code = main(["validate", *settings, *words])
        return f"{code} {capsys.readouterr().err.strip().splitlines()[-1]}"

    policy = tmp_path / "data" / "policy"
    who = ("--by", "Ada")
    why = ("--reason", "few icons this week")
    no_run = "1 align: error: reports/quality/report.json: no"
    assert run("--accept", "keep-rate", *who, *why).startswith(f"{no_run} such file; run `align validate` first")
    assert run("--set-reference", *who).startswith(f"{no_run} verdict yet; run `align validate` first")
    assert run().startswith("1 align: error: quality gate: keep-rate: keep rate: observed 70%, expected 71% to 90%")
    assert run("--set-reference", *who).startswith("1 align: error: --set-reference: the gate failed (keep-rate")
    assert run("--accept", "keep-rate", *who).startswith("1 align: error: --accept NAMES: say why, --reason")
    assert run("--accept", "keep", *who, *why).startswith("1 align: error: --accept keep: no failure of this name")
    assert not policy.exists()
    assert run("--accept", "keep-rate", *who, *why).startswith("0 validate: keep-rate accepted for this data; commit")
    assert re.fullmatch(r"0 validate: passed: \d+ of \d+ expectations hold, 1 accepted by people", run())
    assert run("--set-reference", *who).startswith("0 validate: this data is the reference for drift; commit")
    assert json.loads((policy / "reference.json").read_text())["reference"]["keep_rate"] == 0.7
    with pytest.raises(SystemExit):
        run("--set-reference", "--accept", "keep-rate")


def test_a_reference_names_who_set_it(tmp_path):
    small_data.write_verdict(tmp_path / "quality", passed=True)
    with pytest.raises(ConfigError, match="--by"):
        set_reference(tmp_path / "quality", tmp_path / "policy", "", "2026-01-31")


def judge_shards(root, num_workers=1):
    return validate_shards(
        ENGINE.model_copy(update={"num_workers": num_workers}),
        shards=root / "shards",
        filtered=root / "filtered",
        policy=root / "policy",
        reports=root / "quality_shards",
    )


@pytest.fixture
def data(tmp_path):
    make_shards(
        tmp_path, [*many_pairs(), *pairs()[14:]], small_shards.CONFIG.model_copy(update={"images_per_shard": 100})
    )
    return tmp_path


def test_good_shards_pass_with_any_number_of_workers(data):
    report = judge_shards(data)
    assert report.passed and report.metrics["quality_shards/num_images"] == 60
    digest = json.loads((data / "shards" / "manifest.json").read_text())["digest"]
    require_passed(data / "quality_shards", digest, data / "shards")
    first = {path.name: path.read_bytes() for path in (data / "quality_shards").iterdir()}
    judge_shards(data, num_workers=2)
    assert {path.name: path.read_bytes() for path in (data / "quality_shards").iterdir()} == first
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", first["report.html"].decode())


def test_a_flipped_byte_blocks_until_a_person_accepts_it(data):
    path = data / "shards" / "train" / "00000.tar"
    tar = bytearray(path.read_bytes())
    tar[-1] ^= 1
    path.write_bytes(tar)
    message = "shards-changed: shards whose size or sha256 differs from the manifest: observed 1, expected 0"
    with pytest.raises(GateError, match=message):
        judge_shards(data)
    with pytest.raises(GateError, match=message):
        require_passed(data / "quality_shards", read_manifest(data / "shards").digest, data / "shards")
    assert "train/00000.tar" in (data / "quality_shards" / "report.html").read_text()
    reports = [data / "quality", data / "quality_shards"]
    accept(["shards-changed"], "padding only", "Ada", "2026-01-31", reports=reports, policy=data / "policy")
    assert judge_shards(data).passed
    require_passed(data / "quality_shards", read_manifest(data / "shards").digest, data / "shards")


def test_shards_of_other_decisions_are_refused(data):
    small_data.write(data / "later", pairs()[1:])
    with pytest.raises(GateError, match=r"kept-pairs-differ: .*run `align shard` again: observed 1"):
        validate_shards(
            ENGINE,
            shards=data / "shards",
            filtered=data / "later" / "filtered",
            policy=data / "policy",
            reports=data / "quality_shards",
        )


def test_what_is_missing_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="run `align shard` first"):
        judge_shards(tmp_path)
