"""The torch that is tested is the one that was asked for, and one that pyproject.toml allows."""

import os
import re
import subprocess
from pathlib import Path

import torch

from align.release.packaging.packaged_model import REQUIREMENTS
from tests.support import warm


def test_workers_and_commands_have_the_torch_of_pythonpath(tmp_path):
    beside = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if (Path(one) / "torch").is_dir()]
    assert all(Path(torch.__file__).is_relative_to(folder) for folder in beside[:1])
    command = [warm.commands() / "python", "-c", "import torch; print(torch.__file__)"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.strip() == torch.__file__


def test_the_release_is_allowed_and_ci_installs_the_newest():
    (allowed,) = (line for line in REQUIREMENTS if line.startswith("torch>"))
    low, high = (tuple(map(int, part.split("."))) for part in re.findall(r"[\d.]+", allowed))
    release = tuple(map(int, re.findall(r"\d+", torch.__version__)[:3]))
    if "PYTHONPATH" not in os.environ:  # else another one is tried, see `make test-torch`
        assert low <= release < high
        assert os.environ.get("CI") != "true" or release[:2] == (high[0], high[1] - 1)
