"""The disk of DVC's cache is full when a stage ends."""

from pathlib import Path

import pytest

from tests.support.dvc_projects import environment, make_repository
from tests.support.small_disks import with_disk

DVC_YAML = """\
stages:
  make:
    cmd: head -c 3000000 /dev/urandom > out && echo made >> ../times
    outs: [out]
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


def test_the_stage_fails_with_the_reason_and_works_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_repository(tmp_path / "project", {"dvc.yaml": DVC_YAML}, "/out\n")
    for name, value in environment(root, {}).items():
        monkeypatch.setenv(name, value)
    cache = root / ".dvc/cache"
    cache.mkdir()
    full = with_disk(cache, ["-c", RUN, root], size="1m")
    assert full.returncode == 1
    assert "No space left on device" in full.stderr, full.stderr
    assert not (root / "dvc.lock").exists()
    room = with_disk(cache, ["-c", RUN, root], size="20m")
    assert room.returncode == 0, room.stderr
    assert (root / "dvc.lock").exists() and (tmp_path / "times").read_text() == "made\n" * 2
