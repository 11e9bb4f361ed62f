"""`kill -9` of `align evaluate`, in a set and between two; two at once: the bytes stay the same.

Embeddings are kept after each block: what is embedded again after a kill is less than a block. Texts, ranks and
intervals are computed again.
"""

import time

import pytest

from align.durable.files import is_temporary
from tests.support import tiny_model, wait_until
from tests.support.colours import COLOURS, square
from tests.support.killing import Command, digests, fresh
from tests.support.params import sets
from tests.support.suites import suite

#: Pictures of each of two sets: three blocks of embeddings, of 256 at most, and one.
FIRST, SECOND = 520, 200


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a suite of two sets, all pictures of which differ, and in `whole` the report of an undisturbed run."""
    root = tmp_path_factory.mktemp("evaluation")
    tiny_model.write(root)
    names = list(COLOURS)
    for name, number, first in (("a", FIRST, 0), ("b", SECOND, FIRST)):
        for index in range(first, first + number):
            folder = root / name / "test" / names[index % 4]
            folder.mkdir(parents=True, exist_ok=True)
            data = square(names[index % 4], shade=index // 4, format="PNG", side_px=36)
            (folder / f"{index}.png").write_bytes(data + str(index).encode())  # no two files are equal
    entry = {"format": "folder", "tasks": ["zero_shot"], "templates": ["a {}."]}
    suite(root, *({"name": name, "path": str(root / name), **entry} for name in "ab"))
    command = evaluation(root, "whole")
    assert command.ended(240)
    command.require_success()
    return root


def evaluation(root, name):
    """`align evaluate` that writes `name/report` and keeps embeddings in `name/features`."""
    (root / name).mkdir(exist_ok=True)
    places = (f"paths.evaluation={root / 'suite.yaml'}", f"store.features={root / name / 'features'}")
    words = ["--model", str(root / "model"), "--reports", str(root / name / "report")]
    where = fresh(root / f"{name}-{time.monotonic_ns()}")
    return Command(["evaluate", *words, *sets(*places, "evaluate.num_resamples=200")], where)


def embedded(folder):
    """The files of kept embeddings, one for each picture."""
    return {path for path in folder.glob("*/*") if not is_temporary(path)}


@pytest.mark.parametrize("after", [1, FIRST], ids=["in the middle of a set", "between two sets"])
def test_a_killed_evaluation_resumes_to_the_same_bytes(place, after):
    name = f"killed-{after}"
    command = evaluation(place, name)
    features = place / name / "features"
    wait_until(lambda: len(embedded(features)) >= after, 240, alive=lambda: not command.ended(0), pause_s=0.01)
    command.kill()
    kept = {path: path.stat().st_mtime_ns for path in embedded(features)}
    assert len(kept) < FIRST + SECOND and not (place / name / "report").exists()

    again = evaluation(place, name)
    assert again.ended(240)
    again.require_success()
    assert digests(place / name / "report") == digests(place / "whole/report")
    whole = {path: path.stat().st_mtime_ns for path in embedded(features)}
    assert kept.items() <= whole.items() and len(whole) == FIRST + SECOND  # no kept one was embedded again
    assert [path.name for path in (place / name).iterdir() if path.name != "features"] == ["report"]


def test_two_at_once_share_embeddings_and_the_folder_of_the_report(place):
    both = [evaluation(place, "both") for _ in range(2)]
    for command in both:
        assert command.ended(240)
        command.require_success()
    assert digests(place / "both/report") == digests(place / "whole/report")
    assert sorted(path.name for path in (place / "both").iterdir()) == ["features", "report"]
