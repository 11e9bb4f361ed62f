"""The gate over shards on a real Great Expectations; what it counts is tested in unit/validate/test_shard_check.py."""

import json
import re
from pathlib import Path

import pytest

from align.errors import DataError, GateError
from align.formats.shards import read_manifest
from align.formats.verdict import require_passed
from align.validate.report import QualityReport
from align.validate.validate import accept
from align.validate.validate_shards import validate_shards
from tests.support import small_data
from tests.support.gates import ENGINE, pairs
from tests.support.small_shards import CONFIG, make_shards, many_pairs


def judge(root: Path, num_workers: int = 1) -> QualityReport:
    return validate_shards(
        ENGINE.model_copy(update={"num_workers": num_workers}),
        shards=root / "shards",
        filtered=root / "filtered",
        policy=root / "policy",
        reports=root / "quality_shards",
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_shards(tmp_path, [*many_pairs(), *pairs()[14:]], CONFIG.model_copy(update={"images_per_shard": 100}))
    return tmp_path


def test_good_shards_pass_with_any_number_of_workers(data: Path) -> None:
    report = judge(data)
    assert report.passed and report.metrics["quality_shards/num_images"] == 60
    digest = json.loads((data / "shards" / "manifest.json").read_text())["digest"]
    require_passed(data / "quality_shards", digest, data / "shards")
    first = {path.name: path.read_bytes() for path in (data / "quality_shards").iterdir()}
    judge(data, num_workers=2)
    assert {path.name: path.read_bytes() for path in (data / "quality_shards").iterdir()} == first
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", first["report.html"].decode())


def test_a_flipped_byte_blocks_until_a_person_accepts_it(data: Path) -> None:
    path = data / "shards" / "train" / "00000.tar"
    tar = bytearray(path.read_bytes())
    tar[-1] ^= 1
    path.write_bytes(tar)
    message = "shards-changed: shards whose size or sha256 differs from the manifest: observed 1, expected 0"
    with pytest.raises(GateError, match=message):
        judge(data)
    with pytest.raises(GateError, match=message):
        require_passed(data / "quality_shards", read_manifest(data / "shards").digest, data / "shards")
    assert "train/00000.tar" in (data / "quality_shards" / "report.html").read_text()
    reports = [data / "quality", data / "quality_shards"]
    accept(["shards-changed"], "padding only", "Ada", "2026-01-31", reports=reports, policy=data / "policy")
    assert judge(data).passed
    require_passed(data / "quality_shards", read_manifest(data / "shards").digest, data / "shards")


def test_shards_of_other_decisions_are_refused(data: Path) -> None:
    small_data.write(data / "later", pairs()[1:])
    with pytest.raises(GateError, match=r"shard-pairs-not-kept: .*: observed "):
        validate_shards(
            ENGINE,
            shards=data / "shards",
            filtered=data / "later" / "filtered",
            policy=data / "policy",
            reports=data / "quality_shards",
        )


def test_what_is_missing_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `align shard` first"):
        judge(tmp_path)
