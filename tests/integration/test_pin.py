"""A pinned list is the one dep of an archive on S3: DVC's run cache keeps the stage until somebody pins again."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from align.services.git import git
from tests.support import ROOT
from tests.support.dvc_projects import (
    attempt,
    aws_variables,
    clone,
    commit_all,
    file_bytes,
    make_repository,
    num_runs,
    shell,
)
from tests.support.params import PARAMS_FILE
from tests.support.s3_server import S3Server
from tests.support.warc_records import page, picture, response, write_archive

#: Ingest alone, as this repository's dvc.yaml has it: its archive is a dep, its sections are params.
DVC_YAML = """\
stages:
  ingest:
    cmd: echo ran >> $TEST_RUNS && align ingest
    deps: ["${paths.archive}"]
    params: [ingest, download]
    outs: [data/raw, reports/ingest]
"""


def put(server: S3Server, root: Path, bucket: str, name: str, text: str) -> None:
    """An archive with one page and its picture."""
    archive = write_archive(root / name, [
        page("http://x.example/", f"<img src=a.png alt='{text}'>"),
        response("http://x.example/a.png", picture(3, 2), "image/png"),
    ])  # fmt: skip
    with closing(server._client()) as s3:
        s3.put_object(Bucket=bucket, Key=f"crawl/{name}", Body=archive.read_bytes())


def project(root: Path, archive: str) -> Path:
    """A checkout with the tests' params, but its own archive."""
    params = PARAMS_FILE.read_text().replace("archive: data/sample/archive.warc.gz", f"archive: {archive}")
    params = params.replace("num_workers: null", "num_workers: 1")
    make_repository(root, {"params.yaml": params, "dvc.yaml": DVC_YAML}, ignored="/data/raw\n/reports/\n")
    (root / "data").mkdir()
    return root


def shares_cache(checkout: Path, cache: Path) -> Path:
    (checkout / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n")
    return checkout


def numbers(checkout: Path) -> list[str]:
    """Of files and of pairs; all have a picture."""
    report = json.loads((checkout / "reports/ingest/report.json").read_text())
    assert report["statuses"] == {"success": report["num_pairs"]}
    return [str(report["num_files"]), str(report["num_pairs"])]


def variables(server: S3Server) -> dict[str, str]:
    return aws_variables(server) | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.costs(6, "`dvc repro` five times, three of them with the real ingest from S3")
def test_a_fresh_clone_takes_a_pinned_archive_from_the_run_cache(server: S3Server, tmp_path: Path) -> None:
    aws, cache = variables(server), tmp_path / "cache"
    bucket = server.make_bucket("pinned")
    for name in ("a.warc.gz", "b.warc.gz"):
        put(server, tmp_path, bucket, name, f"the text of {name}")
    first = shares_cache(project(tmp_path / "project", "data/crawl.paths"), cache)
    said = attempt(first, f"align pin s3://{bucket}/crawl --out data/crawl.paths", aws)
    assert "pin: 2 files of s3://pinned/crawl in data/crawl.paths; commit it" in said.stderr
    assert (first / "data/crawl.paths").read_text().startswith("# align pin 1 s3://pinned/crawl\ns3://pinned/crawl/a.w")
    commit_all(first, "pinned")
    shell(first, "dvc repro", aws)
    assert (num_runs(first), numbers(first)) == (1, ["2", "2"])

    second = shares_cache(clone(first, "second", "main"), cache)
    assert not (second / "dvc.lock").exists()
    assert "Stage 'ingest' is cached" in shell(second, "dvc repro", aws)
    assert file_bytes(second / "data/raw") == file_bytes(first / "data/raw")
    assert num_runs(first) == 1

    put(server, tmp_path, bucket, "b.warc.gz", "another text altogether")
    assert "Data and pipelines are up to date" in shell(second, "dvc repro", aws)  # the list still says what was read
    refused = attempt(second, "dvc repro --force", aws)
    assert refused.returncode != 0
    assert (
        "1 of its 2 files changed or disappeared since they were pinned: s3://pinned/crawl/b.warc.gz" in refused.stderr
    )
    shell(second, f"align pin s3://{bucket}/crawl --out data/crawl.paths", aws)
    assert [line[0] for line in git(second, "diff", "--unified=0", "data/crawl.paths").splitlines()[-2:]] == ["-", "+"]
    shell(second, "dvc repro", aws)
    assert num_runs(first) == 3  # the first, the refused, and this one
    assert file_bytes(second / "data/raw") != file_bytes(first / "data/raw")


@pytest.mark.costs(4, "the real ingest from S3, in two clones")
def test_a_bare_address_is_fetched_in_each_clone_and_says_what_to_do(server: S3Server, tmp_path: Path) -> None:
    aws, cache = variables(server), tmp_path / "cache"
    bucket = server.make_bucket("bare")
    put(server, tmp_path, bucket, "a.warc.gz", "the text of a picture")
    first = shares_cache(project(tmp_path / "project", f"s3://{bucket}/crawl/a.warc.gz"), cache)
    said = attempt(first, "dvc repro", aws).stderr
    assert said.count("DVC's run cache keeps nothing that is read from an address") == 1
    assert "align pin s3://bare/crawl/a.warc.gz --out data/archive.paths" in said
    second = shares_cache(clone(first, "second", "main"), cache)
    shell(second, "dvc repro", aws)
    assert num_runs(first) == 2
