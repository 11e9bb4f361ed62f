"""A locked tower over two ranks, its weights whole or sharded: the run equals that of one process.

One launch of two ranks does all their work (`_work`), as in test_sharding.py; the tests check what it saved.
"""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from align.model.dual_encoder import load_model
from align.training.ranks.process_group import Ranks, launch
from align.training.run import run
from align.training.run_plan import TrainingPlan
from align.training.stage import train_stage
from tests.integration.test_sharding import WHOLE, assert_close, assert_same
from tests.support import cpu_budget, training_data
from tests.support.cpu_budget import costs
from tests.support.rank_runs import ended_with, last
from tests.support.training_data import TermAt, finetune_config, plan, pretrain_config

TOWERS = {"image": "vision_model.", "text": "text_model."}
CASES = {
    "whole": {}, "sharded": {"shard_weights": True}, "parts": {"micro_batch": 4},
    "sharded, parts": {"shard_weights": True, "micro_batch": 4},
    "sharded, blocks": {"shard_weights": True, "gradient_checkpointing": "blocks"},
}  # fmt: skip
QUICK = ("whole", "sharded")
EACH = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.full) for case in CASES]
)


def _work(plans: list[tuple[str, TrainingPlan]], root: Path, ranks: Ranks) -> None:
    results: dict[str, list[str]] = {}
    for name, some in plans:
        results.setdefault(name, []).append(ended_with(some, ranks))
    torch.save(results, root / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
@costs(11, "seven runs of two ranks, and three of one")
def root(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Each case of two ranks, and `one`, of each locked tower; and a sharded run that is stopped and resumed."""
    root = tmp_path_factory.mktemp("outcomes")
    data = training_data.write(root)
    begun = plan(data, root / "begun", pretrain_config(num_steps=3))
    train_stage(begun, out=root / "model", reports=root / "reports")

    def of(name: str, which: str, log: Any = None, **changes: Any) -> tuple[str, TrainingPlan]:
        recipe = finetune_config(**(WHOLE | {"locked": which} | changes))
        made = plan(data, root / f"{which} {name}", recipe, initial=root / "model", log=log)
        return f"{which} {name}", made

    both = {"num_processes": 2}
    cases = CASES if cpu_budget.with_full(request) else QUICK
    plans = [of(name, which, **both, **CASES[name]) for which in TOWERS for name in cases]
    for which in TOWERS:
        run(of("one", which)[1])
        plans += [of("stopped", which, log, **both, **CASES["sharded"]) for log in (TermAt(2), None)]
    launch(functools.partial(_work, plans, root), 2, 1)
    return root


@pytest.mark.parametrize("which", TOWERS)
@EACH
def test_two_ranks_equal_one_process(root: Path, which: str, case: str) -> None:
    one, two = (last(root, f"{which} {name}", "finetune") for name in ("one", case))
    assert_close(two, one)
    assert len(two["optimiser"]["state"]) == len(two["average"]) == len(one["average"])


@pytest.mark.parametrize("which", TOWERS)
@EACH
def test_the_locked_tower_stays_as_it_is(root: Path, which: str, case: str) -> None:
    before, after = load_model(root / "model").state_dict(), last(root, f"{which} {case}", "finetune")["model"]
    assert before.keys() == after.keys()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    locked = {name for name in before if name.startswith(TOWERS[which])}
    assert locked <= same and "text_projection.weight" not in same


@pytest.mark.parametrize("which", TOWERS)
def test_stopped_and_resumed_equals_a_whole_run(root: Path, which: str) -> None:
    for rank in range(2):
        first, second = torch.load(root / f"{rank}.pt")[f"{which} stopped"]
        assert first.startswith("StoppedError: stopped by SIGTERM after step 2 of 4") and second == "done"
    assert_same(last(root, f"{which} stopped", "finetune"), last(root, f"{which} sharded", "finetune"))
