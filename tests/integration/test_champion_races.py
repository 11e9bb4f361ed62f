"""Two moves of the champion at once, by processes of two checkouts that share an MLflow server."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.services.tracking.tracker import Tracker
from tests.support import ROOT

#: Decides, says so, waits for the word, and moves; as `align promote` and `align rollback` do, less the gates.
MOVER = """
import sys
from align.errors import LockedError
from align.release.aliases.champion import make_champion, settled, take_back
from align.services.tracking.tracker import Tracker
uri, model, number = sys.argv[1:]
tracker = Tracker(uri)
champion = settled(tracker, model).champion
version = next((each for each in tracker.registry.versions(model) if each.number == int(number)), None)
print("ready", flush=True)
sys.stdin.readline()
try:
    if version is None:
        take_back(tracker, model, "slow")
    else:
        make_champion(tracker, version, replaces=champion, why="better", figures={})
except LockedError as error:
    print("lost:", error)
else:
    print("moved")
"""
ROLLBACK = 0


@pytest.mark.full
@pytest.mark.parametrize("acts", [(3, 4), (3, ROLLBACK)], ids=["two promotions", "a promotion beside a rollback"])
def test_of_two_at_once_the_alias_is_where_the_last_entry_says(
    acts: tuple[int, int], tmp_path: Path, mlflow_server: str
) -> None:
    tracker, model = Tracker(mlflow_server), f"race-{acts[1]}"
    client = tracker.registry._client
    client.create_registered_model(model)
    for _ in range(4):
        client.create_model_version(model, "s3://nowhere/model")
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        assert go(start(tmp_path / str(number), mlflow_server, model, number)) == "moved"
    for pause_s in (0.0, 0.05, 1.0):
        before = tracker.registry.champion_state(model)
        movers = [start(tmp_path / str(place), mlflow_server, model, act) for place, act in enumerate(acts, start=1)]
        movers[0].stdin.write("go\n")  # type: ignore[union-attr]
        movers[0].stdin.flush()  # type: ignore[union-attr]
        time.sleep(pause_s)
        said = [go(mover) for mover in reversed(movers)]
        state = tracker.registry.champion_state(model)
        assert state.unfinished is None and not state.moved_by_hand
        made = state.moves[len(before.moves) :]
        assert 1 <= len(made) <= said.count("moved"), (said, made)  # a later entry may replace an earlier
        assert all(each == "moved" or each.startswith("lost: ") for each in said)
        assert [move.number for move in state.moves] == list(range(1, len(state.moves) + 1))
        for earlier, later in zip(state.moves, state.moves[1:], strict=False):
            assert later.before == earlier.to
        assert state.champion == state.moves[-1].to
        if state.champion != 2:  # for the next round
            assert go(start(tmp_path / "1", mlflow_server, model, 2)) == "moved"


def start(folder: Path, uri: str, model: str, number: int) -> "subprocess.Popen[str]":
    """A process of a checkout that has decided and waits for the word."""
    process = subprocess.Popen(
        [sys.executable, "-c", MOVER, uri, model, str(number)], cwd=folder, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> str:
    """What it says at its end."""
    out, _ = process.communicate("go\n", timeout=120)
    return out.strip()
