"""The examples in the help of every verb, as typed, in a small project that has run."""

import shlex
import shutil

import pytest

from align.cli import main
from align.verbs import VERBS
from flows.checkout.run_branch import record
from tests.support import own_model
from tests.support.journeys import log_run
from tests.support.small_data import jpeg

#: They need a bucket, a web server, Prefect, a process of their own, a champion before the present one, onnxruntime for
#: browsers or an hour of training, or serve until they are stopped; other tests start those.
ELSEWHERE = ("run", "plan", "rollback", "serve", "publish", "study")
#: Shows what it would do, and says so with exit code 1.
PREVIEW = {"align opt_out --purge": "align: error: nothing is purged yet: add --yes"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, finished_project):
    """A copy of the project, with the files that the examples name."""
    home = tmp_path_factory.mktemp("examples") / "home"
    shutil.copytree(finished_project.parent, home, symlinks=True)
    project = home / finished_project.name
    record(project, "wide", "the same")
    for name in ("demo", "wide"):
        log_run(project, name)
    shutil.copytree(home / "photos", home / "new/photos")
    shutil.copytree(home / "photos/images", project / "images")
    shutil.copy(home / "photos/captions.csv", project)
    for number, name in enumerate(("train/shirt", "train/shoe", "test/shirt", "test/shoe")):
        (project / name).mkdir(parents=True)
        (project / name / "a.jpg").write_bytes(jpeg(100 + number))
    (project / "urls.txt").write_text("https://example.org/asked.jpg\n")
    own_model.write_align_base(project)
    return project


@pytest.mark.journeys
def test_the_examples_work_in_the_order_of_the_pipeline(project, monkeypatch, capsys):
    refused = {}
    for verb, entry in VERBS.items():
        for example in () if verb in ELSEWHERE else entry.examples:
            monkeypatch.chdir(project.parent / "new" if example.startswith("align init ") else project)
            capsys.readouterr()
            if main(shlex.split(example)[1:]) != 0:
                refused[example] = capsys.readouterr().err.strip().splitlines()[-1]
    assert {example: line[: len(PREVIEW.get(example, line))] for example, line in refused.items()} == PREVIEW
