"""`align evaluate` under torchrun: two CPU processes give the bytes of one, and one message if one of them fails."""

import os
import subprocess
import sys

import pytest

from tests.support import ROOT, tiny_model
from tests.support.colours import COLOURS, square
from tests.support.killing import digests
from tests.support.params import PARAMS_FILE, sets
from tests.support.suites import suite


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and a suite: a set of 600 pictures, which are three blocks, one of them damaged; and one of captions."""
    root = tmp_path_factory.mktemp("shared")
    tiny_model.write(root)
    names, lines = list(COLOURS), ["file,caption"]
    for index in range(600):
        name = names[index % 4]
        folder = root / "a/test" / name
        folder.mkdir(parents=True, exist_ok=True)
        data = square(name, shade=index // 4 % 100, format="PNG", side_px=36) + str(index).encode()
        (folder / f"{index}.png").write_bytes(b"no picture" if index == 300 else data)
        if index < 300:
            (root / "b").mkdir(exist_ok=True)
            (root / f"b/{index}.png").write_bytes(data)
            lines.append(f"{index}.png,a {name} square of number {index}")
    (root / "b/captions.csv").write_text("\n".join(lines) + "\n")
    classes = {"name": "a", "path": str(root / "a"), "format": "folder", "tasks": ["zero_shot"], "templates": ["a {}."]}
    captions = {"name": "b", "path": str(root / "b/captions.csv"), "format": "table", "tasks": ["retrieval"]}
    suite(root, classes, captions)
    return root


#: `align` whose second rank cannot embed.
FAILING = """
import os, sys
from align.cli import main
from align.errors import DataError
from align.pipeline import shared_evaluation

def embedded(*arguments, **options):
    raise DataError("the pictures have gone")

if os.environ["RANK"] == "1":
    shared_evaluation.embedded = embedded
sys.exit(main())
"""


def evaluated(root, name, *values, ranks=0, program=("-m", "align.cli")):
    """Runs `align evaluate`, alone or by torchrun."""
    own = (f"paths.evaluation={root / 'suite.yaml'}", f"store.features={root / name / 'features'}")
    command = ["evaluate", "--params", str(PARAMS_FILE), "--model", str(root / "model")]
    command += ["--reports", str(root / name / "report"), *sets(*own, "evaluate.num_resamples=200", *values)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *launcher, *program, *command],
        cwd=root, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def test_two_processes_write_the_bytes_of_one(place):
    alone = evaluated(place, "alone")
    assert alone.returncode == 0, alone.stderr[-2000:]
    shared = evaluated(place, "shared", ranks=2)
    assert shared.returncode == 0, shared.stderr[-2000:]
    assert digests(place / "shared/report") == digests(place / "alone/report")
    assert shared.stderr.count("evaluate: a (classification)") == 1
    assert shared.stderr.count("pictures take about") == 1


def test_an_error_is_said_once(place):
    (place / "wrong.yaml").write_text("sets:\n  - {name: x, path: nowhere, format: folder, tasks: [zero_shot]}\n")
    failed = evaluated(place, "wrong", f"paths.evaluation={place / 'wrong.yaml'}", ranks=2)
    assert failed.returncode == 1
    assert failed.stderr.count("align: error:") == 1
    assert "rank 0" in failed.stderr and "nowhere" in failed.stderr
    assert not (place / "wrong/report").exists()


def test_an_error_of_one_rank_ends_all(place):
    (place / "failing.py").write_text(FAILING)
    failed = evaluated(place, "failing", ranks=2, program=[str(place / "failing.py")])
    assert failed.returncode == 1
    assert failed.stderr.count("align: error:") == 1
    assert "align: error: rank 1: the pictures have gone" in failed.stderr
    assert not (place / "failing/report").exists()
