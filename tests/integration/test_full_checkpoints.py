"""The disk of the checkpoints is full while training runs, also when a rank is killed then; or that of DVC's cache."""

import json
import subprocess
from pathlib import Path

import pytest

from align.config.infrastructure import ClusterConfig
from align.errors import TrainingError
from align.training.plan import Infrastructure
from align.training.train import run
from tests.support.dvc_projects import enter, make_repository
from tests.support.killing import KillOnce
from tests.support.params import load_params
from tests.support.small_disks import with_disk
from tests.support.training_data import plan, pretrain_config

STEPS = {"checkpoint_every_steps": 2, "log_every_steps": 1, "validate_every_steps": 8}
FULL = "a checkpoint cannot be written: No space left on device; older ones are kept"


def more_room(folder):
    subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)


def checkpoints(folder):
    return sorted(Path(folder).glob("*/*.pt*"))


def two_ranks(folder, shards, tokenizer, marker, killed_at):
    """Two ranks, before and after there is room. The leading one is killed at a step, and both are restarted."""
    training = plan(
        (Path(shards), Path(tokenizer)),
        Path(folder),
        pretrain_config(**STEPS, num_processes=2),
        log=KillOnce(Path(marker), int(killed_at)),
        infrastructure=Infrastructure(cluster=load_params().section(ClusterConfig)),
    )
    try:
        run(training)
    except TrainingError as error:
        print(error)
    print([path.name for path in checkpoints(folder)])
    more_room(folder)
    trained = run(training)
    print(json.dumps(trained.rows))


@pytest.mark.kill  # most of a minute
@pytest.mark.parametrize("killed_at", [0, 5])
def test_all_ranks_end_for_the_same_reason(data, tmp_path, killed_at):
    """Step 4 does not fit: the leading rank cannot save, of which the other one must not die. Nor if it is killed."""
    calm = run(plan(data, tmp_path / "calm", pretrain_config(**STEPS, num_processes=2)))
    (tmp_path / "full").mkdir()
    arguments, checkpoint = (*data, tmp_path / "marker", killed_at), checkpoints(tmp_path / "calm")[0]
    code = "import sys; from tests.integration.test_full_checkpoints import two_ranks; two_ranks(*sys.argv[1:])"
    size = str(checkpoint.stat().st_size * 3 // 2)  # room for one and a half
    done = with_disk(tmp_path / "full", ["-c", code, tmp_path / "full", *arguments], size=size)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert (tmp_path / "marker").exists() is bool(killed_at)
    assert said[0].endswith(FULL), said
    assert said[1] == "['step-00000002.pt']"
    assert json.loads(said[2]) == calm.rows


DVC_YAML = """\
stages:
  make: {cmd: head -c 3000000 /dev/urandom > out && echo made >> ../times, outs: [out]}
"""
#: As a run's task starts a stage.
RUN = """
import os, sys
from pathlib import Path
from flows.tasks.child_process import CommandError, run_supervised
try:
    run_supervised(["dvc", "repro", "-s", "make"], cwd=Path(sys.argv[1]), env=os.environ, log=lambda line: None)
except CommandError as error:
    sys.exit(str(error))
"""


def test_the_stage_fails_with_the_reason_and_works_once_there_is_room(tmp_path, monkeypatch):
    root = make_repository(tmp_path / "project", {"dvc.yaml": DVC_YAML}, "/out\n")
    enter(root, monkeypatch)
    cache = root / ".dvc/cache"
    cache.mkdir()
    full = with_disk(cache, ["-c", RUN, root], size="1m")
    assert full.returncode == 1
    assert "No space left on device" in full.stderr, full.stderr
    assert not (root / "dvc.lock").exists()
    room = with_disk(cache, ["-c", RUN, root], size="20m")
    assert room.returncode == 0, room.stderr
    assert (root / "dvc.lock").exists() and (tmp_path / "times").read_text() == "made\n" * 2
