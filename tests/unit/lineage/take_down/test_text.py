"""What `align forget` says that a purge does not touch."""

from pathlib import Path

import pytest

from align.config.paths import PathsConfig
from align.formats.policy import Entry, OptedOut
from align.lineage.take_down.text import remaining_lines
from tests.support import colour_index
from tests.support.colour_shards import image_id
from tests.support.params import load_params


def test_reports_of_failed_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = load_params().section(PathsConfig)
    monkeypatch.chdir(tmp_path)
    assert "failed runs" not in "\n".join(remaining_lines(paths, [], frozenset(), OptedOut()))
    Path(".align/failed").mkdir(parents=True)
    assert "    ends with: `rm -rf .align/failed`" in list(remaining_lines(paths, [], frozenset(), OptedOut()))


def test_copies_of_an_index_are_named_where_they_show_what_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = load_params().section(PathsConfig)
    monkeypatch.chdir(tmp_path)
    colour_index.build(tmp_path / "data/sample/ready")

    def said(sha256: str, host: str) -> str:
        policy = OptedOut([Entry("host", host, "", "")])
        return "\n".join(remaining_lines(paths, [], frozenset({sha256}), policy))

    assert "data/sample/ready" not in said("another", "other.example") and ".align/served" not in said("a", "b.c")
    for sha256, host in ((image_id("000000003"), "other.example"), ("another", "example.com")):
        assert "data/sample/ready and git's history of it" in said(sha256, host)
    Path(".align/served").mkdir(parents=True)
    assert "ends with: `rm -rf .align/served`" in said("another", "other.example")
    (tmp_path / "data/sample/ready/index/addresses.parquet").write_bytes(b"PAR1")
    assert "data/sample/ready: cannot be read" in said("another", "other.example")
