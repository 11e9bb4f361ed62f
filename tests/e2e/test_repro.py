"""`dvc repro` alone on a reduced sample, in a clone of its own: no Prefect, no MLflow, no server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import main
from align.config.params_file import write_params
from flows.git_repository import git
from tests.support import ROOT, thinned
from tests.support.params import PARAMS_FILE

#: Small enough for a minute or two, long enough for the model to know its hundred images by heart.
REDUCED = {
    "engine.num_workers": 1,  # of so little work each further process has but its imports
    "ingest.max_pages": 10,
    "validate.min_evaluation_sets": 1,
    "validate.max_evaluation_hash_share": 0.05,  # one flag of a hundred pairs is one in a hundred
    "shard.image_px": 36,
    "model.resize_px": 36,
    "model.image_px": 32,
    "model.image_tower.width_coefficient": 0.25,
    "model.image_tower.depth_coefficient": 0.25,
    "model.text_tower.width": 64,
    "model.text_tower.layers": 1,
    "model.text_tower.heads": 2,
    "pretrain.num_steps": 150,
    "pretrain.num_processes": 1,
    "pretrain.num_threads": 1,
    "finetune.num_processes": 1,
    "finetune.num_threads": 1,
    "pretrain.batch_size": 32,
    "pretrain.warmup_steps": 10,
    "pretrain.flip": False,
    "pretrain.validate_every_steps": 150,
    "finetune.num_steps": 10,
    "finetune.batch_size": 32,
    "finetune.flip": False,
    "evaluate.num_resamples": 100,
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this checkout as they stand, in a repository of their own, with an eighth of one evaluation set."""
    root = tmp_path_factory.mktemp("e2e") / "clone"
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    evaluation = root / "data/sample/evaluation"
    for path in evaluation.iterdir():
        if path.stem != "classes":
            path.unlink()
    thinned.write(evaluation / "classes.json", evaluation, lambda number, key: number % 8 == 0)
    shutil.copy(PARAMS_FILE, root / "params.yaml")
    write_params(root / "params.yaml", REDUCED)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "reduced")
    return root


def run(clone: Path, *command: str) -> str:
    """stdout of a command in the clone; nothing but the clone's own code, and no server to find."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"PYTHONPATH": str(clone), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_repro_from_nothing_to_search(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Running stage 'index'" in run(clone, "dvc", "repro")
    assert git(clone, "status", "--porcelain") == "?? dvc.lock"  # DVC wrote no .gitignore, no stage a stray file
    assert json.loads(run(clone, "dvc", "status", "--json")) == {}
    assert "Running stage" not in run(clone, "dvc", "repro")

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
    assert set(json.loads(run(clone, "dvc", "status", "--json"))) == {"validate"}
