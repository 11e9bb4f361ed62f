"""Take-downs in a real checkout with git, DVC, S3 and MLflow: recorded, obeyed, and purged to the last byte."""

import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.formats.acceptances import write_acceptances
from align.formats.verdict import Verdict, write_verdict
from align.interfaces.expectations import Acceptance
from align.services.tracking.tracker import Tracker
from flows.checkout.run_branch import record
from tests.support import pictures_project
from tests.support.dvc_projects import aws_variables, enter, file_bytes, shell
from tests.support.pictures_project import CODE, INGEST_AND_FILTER, NUM_PICTURES
from tests.support.s3_server import serve
from tests.support.small_data import jpeg
from tests.support.warm import commands

#: The real ingest and filter over nine pictures; shards and index are made by hand: only who shows what matters.
DVC_YAML = (
    INGEST_AND_FILTER
    + """\
  shard:
    cmd: python -m shard
    deps: [data/raw, data/filtered, shard.py]
    outs: [data/shards, data/index, reports/shard]
"""
)
SHARD = """\
import shutil
from pathlib import Path
import pyarrow.parquet as pq
from tests.support import indexed, small_data
for name in ("shards", "index"):
    shutil.rmtree(Path("data", name), ignore_errors=True)
small_data.write_shards(Path("data"))
Path("reports/shard").mkdir()
Path("reports/shard/report.json").write_text("{}")
kept = pq.read_table("data/filtered/decisions", filters=[("keep", "==", True)])
given = {"key": kept["key"], "image_id": kept["image_id"], "texts": [[text] for text in kept["text"].to_pylist()]}
indexed.write(Path("data/index"), len(kept), **given)
"""
FORGOTTEN, WORDS = jpeg(4), "picture number 4 of a red fox"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose pipeline has run once, recorded as run/before."""
    root = tmp_path_factory.mktemp("opt_out") / "project"
    pictures_project.write(root, "opted", {"dvc.yaml": DVC_YAML, "shard.py": SHARD})
    shell(root, "dvc repro --quiet", CODE)
    record(root, "before", "before the letter came")
    return root


@pytest.fixture
def project(made, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(made, root, symlinks=True)
    (root / "keys.txt").write_text(f"{key_of(root, FORGOTTEN)}\n")
    return root


@dataclass
class Align:
    """`align` in the project, in this process: MLflow takes seconds to import."""

    root: Path
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    notes: str = ""

    def use(self, variables):
        enter(self.root, self.patch, variables)

    def __call__(self, *words, code=0):
        """Its stdout, followed by stderr if it has to fail."""
        with self.patch.context() as patch:
            patch.setattr(sys, "executable", str(commands() / "python"))  # of the programs that it starts
            assert main(words) == code, self.capsys.readouterr().err
        said = self.capsys.readouterr()
        self.notes = said.err
        return said.out + (said.err if code else "")


@pytest.fixture
def align(project, monkeypatch, capsys):
    return Align(project, monkeypatch, capsys)


def key_of(root, picture):
    (image,) = (path for path in (root / "pictures").glob("*.jpg") if path.read_bytes() == picture)
    (row,) = (row for row in decisions(root) if f"number {image.stem} " in row["text"])
    return str(row["key"])


def decisions(root):
    return pq.read_table(root / "data/filtered/decisions").to_pylist()


def holders(folder, picture):
    return sorted(name for name, data in file_bytes(folder).items() if picture in data)


def tellers(files, words):
    """The files that have these words, also within tables."""
    found = []
    for name, data in files.items():
        table = data.startswith(b"PAR1")
        text = str(pq.read_table(io.BytesIO(data)).to_pylist()) if table else data.decode("utf-8", "replace")
        if words in text:
            found.append(name)
    return sorted(found)


def reasons(root):
    return {str(row["key"]): row["reason"] for row in decisions(root) if row["reason"]}


def test_forgotten_for_good_and_purged_to_the_last_byte(project, tmp_path, align):
    with serve(tmp_path / "s3") as server:
        aws = aws_variables(server) | CODE
        bucket = server.make_bucket("data")
        (project / ".dvc/config.local").write_text(f"['remote \"cloud\"']\n    url = s3://{bucket}/dvc\n")
        shell(project, "dvc push --quiet --run-cache -r cloud", aws)
        align.use(aws)
        key = key_of(project, FORGOTTEN)

        # Recorded and obeyed by the next run, which does not ingest again; its data joins the history.
        align("opt_out", "--keys", "keys.txt", "--reason", "a letter")
        repro = shell(project, "dvc repro", aws)
        assert "Running stage 'filter'" in repro
        assert "Running stage 'ingest'" not in repro
        assert reasons(project) == {key: "opted_out"}
        record(project, "after", "after the letter came")
        shell(project, "dvc push --quiet -r cloud", aws)
        (move,) = json.loads(align("diff", "run/before", "run/after", "--json"))["moves"]
        assert (move["before"], move["after"], move["num_pairs"]) == ("kept", "opted_out", 1)
        assert len(holders(project / ".dvc/cache", FORGOTTEN)) == 2  # a tar of data/raw, one of the older data/shards
        assert holders(project / "data/raw", FORGOTTEN)
        assert not holders(project / "data/shards", FORGOTTEN)
        others = {number: len(holders(project / ".dvc/cache", jpeg(number))) for number in (0, 5)}

        # While a remote is unavailable, the rest is purged, and the message says what is left.
        server.kill()
        said = align("opt_out", "--purge", code=1)
        assert "to go: 1 pictures of data/raw" in said and "not searched: DVC remote 'cloud'" in said
        assert holders(project / "data/raw", FORGOTTEN)
        assert "not everything is gone: DVC remote 'cloud'" in align("opt_out", "--purge", "--yes", code=1)
        for folder in ("data", ".dvc", "reports"):
            assert not holders(project / folder, FORGOTTEN)
            assert not tellers(file_bytes(project / folder), WORDS)

        server.start()
        assert any(FORGOTTEN in data for data in server.objects(bucket).values())
        assert "nothing is left" in align("opt_out", "--purge", "--yes")
        assert not any(FORGOTTEN in data for data in server.objects(bucket).values())
        assert not tellers(server.objects(bucket), WORDS)

        # All other pictures are where they were, except in the versions that showed the forgotten one.
        assert all(holders(project / "data/raw", jpeg(number)) for number in range(NUM_PICTURES) if number != 4)
        assert all(len(holders(project / ".dvc/cache", jpeg(number))) >= 1 for number in others)

        # DVC has recorded the purged data/raw: the pipeline continues from it, and a push uploads what is new.
        repro = shell(project, "dvc repro", aws)
        assert "Running stage 'ingest'" not in repro
        assert reasons(project) == {key: "opted_out"}
        shell(project, "dvc push --quiet -r cloud", aws)
        pushed = set(server.objects(bucket).values())
        assert {
            data for name in ("raw", "shards", "filtered") for data in file_bytes(project / "data" / name).values()
        } <= pushed

        # The archive still has the picture; an ingest from it skips the picture.
        assert "Running stage 'ingest'" in shell(project, "dvc repro --force --single-item ingest", aws)
        assert holders(project, FORGOTTEN) == ["pictures/4.jpg"]
        assert tellers(file_bytes(project), WORDS) == ["pictures/captions.csv"]


def test_it_lists_the_versions_that_saw_the_pair_and_what_was_accepted_of_their_data(project, mlflow_server, align):
    digest = json.loads((project / "data/shards/manifest.json").read_text())["digest"]
    align.use(CODE | {"MLFLOW_TRACKING_URI": mlflow_server})
    tracker = Tracker(mlflow_server)
    run = tracker.start_run("opted", "training")
    tracker.end_run(run)
    of_data = ("align.data_digest", "align.trained_on")
    first = tracker.registry.create_version("opted", run, "model", dict.fromkeys(of_data, digest))
    tracker.registry.create_version("opted", run, "model", dict.fromkeys(of_data, "f" * 64))
    tracker.registry.create_version("opted", run, "model", {})
    tracker.registry.set_alias(first, "champion")
    (project / "reports/quality").mkdir(parents=True)
    write_verdict(Verdict(passed=True, failure=None, data=digest), project / "reports/quality")
    accepted = {"observed": "5 %", "threshold": "9 %", "reason": "icons", "by": "Ada", "on": "2026-01-31"}
    entries = [Acceptance(expectation=f"e{data}", data=data, **accepted) for data in (digest, "f" * 64)]
    write_acceptances(entries, project / "data/policy")
    said = align("opt_out", "--keys", "keys.txt")
    assert f"its gate still fails: e{digest} on 2026-01-31 by Ada, where 5 % was observed\n" in align.notes
    assert "opted version 1 (champion): trained on 1 of the pairs; the checkout's data" in said
    assert "opted version 2: unknown; data ffffffffffff is not in this checkout" in said
    assert "opted version 3: unknown; the version has no tag align.data_digest" in said
