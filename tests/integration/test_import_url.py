"""A list of an archive on S3 is the one dep of DVC: its run cache keeps the stage until the list has another digest.

The digest of what the server has is DVC's own (`dvc import-url --no-download`), as docs/scale.md says.
"""

import json
import os
from contextlib import closing

from tests.support import ROOT
from tests.support.dvc_projects import aws_variables, clone, commit_all, file_bytes, make_repository, num_runs, shell
from tests.support.params import PARAMS_FILE
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


def put(server, root, bucket, name, text):
    """An archive with one page and its picture."""
    archive = write_archive(root / name, [
        page("http://x.example/", f"<img src=a.png alt='{text}'>"),
        response("http://x.example/a.png", picture(3, 2), "image/png"),
    ])  # fmt: skip
    with closing(server._client()) as s3:
        s3.put_object(Bucket=bucket, Key=f"crawl/{name}", Body=archive.read_bytes())


def test_a_fresh_clone_takes_a_listed_archive_from_the_run_cache(server, tmp_path):
    aws = aws_variables(server) | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    bucket, cache = server.make_bucket("listed-archive"), tmp_path / "cache"
    [commands] = [
        part.replace("BUCKET", bucket)
        for part in (ROOT / "docs/scale.md").read_text().split("\n\n")
        if part.lstrip().startswith("dvc import-url")
    ]
    for name in ("a.warc.gz", "b.warc.gz"):
        put(server, tmp_path, bucket, name, f"the text of {name}")
    params = PARAMS_FILE.read_text().replace("archive: data/sample/archive.warc.gz", "archive: data/crawl.paths")
    params = params.replace("num_workers: null", "num_workers: 1")
    files = {"params.yaml": params, "dvc.yaml": DVC_YAML}
    first = make_repository(tmp_path / "project", files, ignored="/data/raw\n/reports/\n")
    (first / "data").mkdir()
    (first / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n")
    shell(first, commands, aws)
    listed = (first / "data/crawl.paths").read_text()
    commit_all(first, "listed")
    shell(first, "dvc repro", aws)
    report = json.loads((first / "reports/ingest/report.json").read_text())
    assert (num_runs(first), report["num_files"], report["statuses"]) == (1, 2, {"success": 2})

    second = clone(first, "second", "main")
    (second / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n")
    assert "Stage 'ingest' is cached" in shell(second, "dvc repro", aws)
    assert file_bytes(second / "data/raw") == file_bytes(first / "data/raw")

    shell(second, commands, aws)
    assert (second / "data/crawl.paths").read_text() == listed
    put(server, tmp_path, bucket, "b.warc.gz", "another text altogether")
    shell(second, commands, aws)
    assert (second / "data/crawl.paths").read_text() != listed
    shell(second, "dvc repro", aws)
    assert num_runs(first) == 2
    assert file_bytes(second / "data/raw") != file_bytes(first / "data/raw")
