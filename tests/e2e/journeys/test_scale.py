"""docs/scale.md as it is typed, in a small project of `align init` that has run; S3 is a real server."""

import shutil

import pytest

from align.services.git import git
from tests.support.dvc_projects import aws_variables, file_bytes, shell
from tests.support.journeys import travel
from tests.support.s3_server import serve


@pytest.mark.journeys
def test_a_second_clone_takes_every_stage_from_the_bucket(folder, finished_project):
    shutil.copytree(finished_project.parent, folder, symlinks=True, dirs_exist_ok=True)
    project = folder / finished_project.name
    with serve(folder / "server") as server:
        aws = aws_variables(server) | {"BUCKET": server.make_bucket("bytes")}
        said = travel(project, "scale", "s3", aws)
    code, *stages = shell(project, "dvc stage list --name-only", {}).split()
    assert code == "code" and len(stages) == 11
    assert [stage for stage in stages if f"Stage '{stage}' is cached" not in said] == []
    assert said.count("Running stage") == said.count("Running stage 'code'")
    second = folder / "second"
    assert git(second, "branch", "--show-current") == "run/demo"
    for out in ("data/raw", "data/index", "models/packaged", "reports/evaluation"):
        assert file_bytes(second / out) == file_bytes(project / out), out
