"""`dvc repro` alone on a reduced sample, in a clone of its own: no Prefect, no MLflow, no server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import main
from align.config.params import write_params
from align.services.git import git
from tests.support import small_checkout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of this checkout, reduced."""
    return small_checkout.write(tmp_path_factory.mktemp("e2e") / "clone")


def run(clone, *command):
    """stdout of a command in the clone; nothing but the clone's own code, and no server to find."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"PYTHONPATH": str(clone), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.journeys
@pytest.mark.e2e
def test_repro_from_nothing_to_search(clone, monkeypatch, capsys):
    assert "Running stage 'index'" in run(clone, "dvc", "repro")
    assert git(clone, "status", "--porcelain") == "?? dvc.lock"  # DVC wrote no .gitignore, no stage a stray file
    assert json.loads(run(clone, "dvc", "status", "--json")) == {"code": ["always changed"]}
    assert run(clone, "dvc", "repro").count("Running stage") == 1  # code

    # Three images that it was trained on, found by their texts among all: by chance one in a thousand clones does.
    from align.formats.shards import iter_samples, read_manifest

    splits = read_manifest(clone / "data/shards").splits
    assert sum(split.num_images for split in splits.values()) > 80
    monkeypatch.chdir(clone)
    for sample in list(iter_samples(clone / "data/shards", "train"))[:3]:
        capsys.readouterr()
        assert main(["search", sample.texts[0], "--json", "-k", "10"]) == 0
        hits = json.loads(capsys.readouterr().out)
        assert sample.key in [hit["key"] for hit in hits], sample.texts[0]

    # Another threshold of the gate makes the gate stale, and nothing before it.
    write_params(clone / "params.yaml", {"validate.min_pairs": 90})
    assert set(json.loads(run(clone, "dvc", "status", "--json"))) == {"code", "validate"}
