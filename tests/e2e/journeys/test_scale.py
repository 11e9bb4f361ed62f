"""docs/scale.md as it is typed, in a small project of `align init` that has run; S3 is a real server."""

import shutil
from pathlib import Path

import pytest

from align.services.git import git
from tests.support.dvc_projects import aws_variables, file_bytes, shell
from tests.support.journeys import AUTHOR, travel
from tests.support.s3_server import serve


@pytest.mark.full
def test_a_second_clone_takes_every_stage_from_the_bucket(folder: Path, finished_project: Path) -> None:
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


@pytest.mark.full
def test_a_second_recipe_takes_the_pictures_of_the_first(folder: Path, finished_project: Path) -> None:
    shutil.copytree(finished_project.parent, folder, symlinks=True, dirs_exist_ok=True)
    project = folder / finished_project.name
    said = travel(project, "scale", "recipes", AUTHOR)
    table = said[said.index("+ align compare") :]
    assert "filter.max_words" in table and "lists" in table and "shorter-texts" in table
    # One tar for each of data/raw in the store, and both recipes have links to it.
    (pictures,) = (project / ".align/store/pictures").iterdir()
    tars = {path.read_bytes() for path in pictures.glob("*.tar")}
    assert len(tars) == len(list((project / "data/raw").glob("*.tar")))
    shards = project / "data/shards"
    num_lines = []
    (project / "dvc.lock").unlink()
    for branch in ("run/lists", "run/shorter-texts"):
        git(project, "switch", "--quiet", branch)
        shell(project, "dvc checkout --force data/shards", {})
        assert {path.read_bytes() for path in (shards / "pictures").iterdir()} == tars
        assert not list((shards / "train").glob("*.tar"))
        num_lines.append(sum(len(path.read_text().splitlines()) for path in (shards / "train").glob("*.jsonl")))
    assert 0 < num_lines[1] < num_lines[0]
