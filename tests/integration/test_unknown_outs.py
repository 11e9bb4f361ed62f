"""What a run refuses to replace, in a small DVC project: only what neither dvc.lock nor the cache has."""

import shutil
from pathlib import Path

import pytest

from align.errors import DataError
from flows.checkout.stage_states import read_status, require_known
from flows.dag import Selection, read_dag
from flows.tasks.run_context import RunContext
from tests.support.dvc_projects import environment, make_repository, shell

DVC_YAML = """\
stages:
  ingest:
    cmd: mkdir -p data/raw reports/ingest && cp value.txt data/raw/ && cp value.txt reports/ingest/
    deps: [value.txt]
    outs: [data/raw, reports/ingest]
    meta: {flow: data}
"""
FILES = {"dvc.yaml": DVC_YAML, "params.yaml": "paths: {raw: data/raw, reports: reports}\n", "value.txt": "one"}


def test_only_what_would_be_lost_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_repository(tmp_path / "project", FILES, "")
    for name, value in environment(root, {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    run = RunContext(root=root, checkout=root, chosen=Selection(asked=read_dag(root)))
    raw = root / "data/raw"

    def check() -> None:
        require_known(run, read_status(root))

    def put(text: str) -> None:
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir(parents=True)
        (raw / "value.txt").write_text(text)

    put("mine")
    with pytest.raises(DataError, match=r"data/raw holds what DVC does not know, .* `dvc commit ingest`; else move it"):
        check()  # before any run
    shutil.rmtree(raw)
    check()
    shell(root, "dvc repro --quiet", {})
    (root / "value.txt").write_text("two")
    check()  # what would be replaced is what dvc.lock records
    shell(root, "dvc repro --quiet", {})
    put("one")
    check()  # not what dvc.lock records, but the cache has it
    put("mine")
    with pytest.raises(DataError, match="data/raw holds what DVC does not know"):
        check()
    (raw / "value.txt").unlink()
    with pytest.raises(DataError, match="data/raw holds what DVC does not know"):
        check()  # an emptied folder is not what DVC knows, either
    put("mine")
    shell(root, "dvc commit --quiet --force ingest", {})
    check()
    shutil.rmtree(root / "reports/ingest")
    (root / "reports/ingest").mkdir()
    (root / "reports/ingest/page").write_text("of a failed run")
    check()  # a report is made again
