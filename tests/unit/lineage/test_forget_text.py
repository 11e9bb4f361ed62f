"""What `align forget` says that a purge does not touch."""

from pathlib import Path

import pytest

from align.config.paths import PathsConfig
from align.lineage.forget_text import remaining_lines
from tests.support.params import load_params


def test_reports_of_failed_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = load_params().section(PathsConfig)
    monkeypatch.chdir(tmp_path)
    assert "failed runs" not in "\n".join(remaining_lines(paths, [], frozenset()))
    Path(".align/failed").mkdir(parents=True)
    assert "    ends with: `rm -rf .align/failed`" in list(remaining_lines(paths, [], frozenset()))
