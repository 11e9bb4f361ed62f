"""Four ranks as two machines of two: weights divided within each machine (`shard_weights: node`), and bfloat16 gathers.

One launch does all their work (`_work`), as in test_sharding.py; the tests check what it saved.
"""

import functools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from align.errors import TrainingError
from align.model.dual_encoder import DualEncoder
from align.training import step as step_module
from align.training.process_group import Ranks, launch
from align.training.run import run
from align.training.sharding import shard, shards
from tests.integration.test_sharding import (
    WHOLE,
    assert_close,
    assert_gradients,
    assert_lamb,
    assert_same,
    gradients,
    lamb,
)
from tests.integration.test_sharding import _plan as plan
from tests.support import cpu_budget, training_data
from tests.support.cpu_budget import costs
from tests.support.rank_runs import ended_with, last
from tests.support.training_data import MODEL, TermAt, pretrain_config

NODE = {"shard_weights": "node"}
HALF = {"gather_precision": "bfloat16"}
#: Ways through a step. Those of one machine with four ranks are as those with two (test_sharding.py).
QUICK = ("parts", "micro_batch")
CASES = (*QUICK, "cheap", "parts, one machine", "micro_batch, one machine")
#: The rate is small: rounding grows with it.
ALONE = WHOLE | {"batch_size": 16, "learning_rate": 0.001}
RUN = ALONE | NODE | {"num_processes": 4, "micro_batch": 4}


def _layouts(ranks: Ranks, **recipe: Any) -> dict[str, Any]:
    """How a convolution's weight lies in memory while it computes, kept, and as a gradient; and its type."""
    config = pretrain_config(**recipe)
    model = DualEncoder(MODEL, 50).train()
    shard(model, config, ranks)
    convolution = model.vision_model.encoder.blocks[1].expansion.expand_conv
    seen: dict[str, Any] = {}

    def look(module: nn.Conv2d, inputs: Any, output: Tensor) -> None:
        weight = module.weight
        seen["computes with"] = (tuple(weight.shape), weight.is_contiguous(memory_format=torch.channels_last))
        seen["type"], seen["output"] = weight.dtype, output.is_contiguous(memory_format=torch.channels_last)

    convolution.register_forward_hook(look)
    with step_module.autocast(config, ranks.device):
        model.vision_model(torch.zeros(4, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    kept = convolution._parameters["weight"]
    seen["kept"] = kept.to_local().stride() == kept.grad.to_local().stride() and kept.to_local().is_contiguous()
    seen["gradient"] = kept.grad.dtype
    return seen


def _work(cases: Sequence[str], plans: list[tuple[str, Any]], tokenizer: Path, root: Path, ranks: Ranks) -> None:
    alone, ranks = ranks, replace(ranks, num_on_node=2)
    results: dict[str, Any] = {}
    step_module.CPU_PART = 4
    for case in cases:
        machines: dict[str, Any] = {} if "," in case else NODE
        results[case] = gradients(tokenizer, case.partition(",")[0], ranks if machines else alone, **machines)
    results["half"] = gradients(tokenizer, "micro_batch", ranks, **NODE, **HALF)
    results["all, half"] = gradients(tokenizer, "micro_batch", alone, **HALF)
    results["lamb"] = lamb(init_device_mesh("cpu", (2, 2), mesh_dim_names=("between_nodes", "within_node")))
    results["layouts"] = _layouts(ranks, **NODE)
    results["layouts, half"] = _layouts(ranks, **NODE, **HALF)
    try:
        shards(pretrain_config(**NODE), replace(ranks, num_on_node=1 + ranks.rank % 2))
    except TrainingError as error:
        results["uneven"] = str(error)
    for name, some in plans:
        results[name] = ended_with(some, ranks)
    torch.save(results, root / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
@costs(18, "four ranks, with six ways through a step and a run that resumes")
def root(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    full = cpu_budget.with_full(request)
    root = tmp_path_factory.mktemp("outcomes")
    run(plan(data, root / "one", **ALONE))
    shutil.copytree(root / "one", root / "resumed by nodes")
    for step in (3, 4):
        next((root / "resumed by nodes").glob(f"*/step-{step:08d}.pt")).unlink()
    plans = [("resumed by nodes", plan(data, root / "resumed by nodes", **RUN))]
    if full:
        plans += [
            ("whole", plan(data, root / "whole", **RUN)),
            ("stopped", plan(data, root / "stopped", TermAt(2), **RUN)),
            ("resumed", plan(data, root / "stopped", **RUN)),
        ]
    launch(functools.partial(_work, CASES if full else QUICK, plans, data[1], root), 4, 1)
    return root


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    return [torch.load(root / f"{rank}.pt") for rank in range(4)]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.full) for case in CASES]
)
def test_gradients_are_sums_over_all_machines(
    ranks: list[dict[str, Any]], data: tuple[Path, Path], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "CPU_PART", 4)
    assert len({outcome[case][:2] for outcome in ranks}) == 1
    assert_gradients(ranks[0][case], data[1], case.partition(",")[0])


def test_trust_ratios_are_those_of_whole_weights(ranks: list[dict[str, Any]]) -> None:
    """A row that each machine has counts once."""
    assert_lamb(ranks[0]["lamb"])


@pytest.mark.full
def test_a_run_equals_that_of_one_process(root: Path, ranks: list[dict[str, Any]]) -> None:
    """Weights, average, rows of validation, and the best checkpoint."""
    assert [outcome["whole"] for outcome in ranks] == ["done"] * 4
    assert_close(last(root, "whole"), last(root, "one"))
    best = [torch.load(next((root / name).glob("*/best.pt")))["step"] for name in ("whole", "one")]
    assert best[0] == best[1]


@pytest.mark.full
def test_stopped_and_resumed_equals_a_whole_run(root: Path, ranks: list[dict[str, Any]]) -> None:
    for outcome in ranks:
        assert outcome["stopped"].startswith("StoppedError: stopped by SIGTERM after step 2 of 4")
        assert outcome["resumed"] == "done"
    assert_same(last(root, "stopped"), last(root, "whole"))


def test_two_machines_resume_from_one_process(root: Path, ranks: list[dict[str, Any]]) -> None:
    assert [outcome["resumed by nodes"] for outcome in ranks] == ["done"] * 4
    assert_close(last(root, "resumed by nodes"), last(root, "one"))
    best = [torch.load(next((root / name).glob("*/best.pt")))["step"] for name in ("resumed by nodes", "one")]
    assert best[0] == best[1]


@pytest.mark.full
def test_one_process_resumes_from_two_machines(root: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(root / "whole", tmp_path / "whole")
    alone = plan(data, tmp_path / "whole", **ALONE)
    for step in (3, 4):
        (alone.folder().directory / f"step-{step:08d}.pt").unlink()
    assert run(alone) is not None
    assert_close(last(tmp_path, "whole"), last(root, "one"))


def test_convolutions_keep_channels_last(ranks: list[dict[str, Any]]) -> None:
    for name, kind in (("layouts", torch.float32), ("layouts, half", torch.bfloat16)):
        for outcome in ranks:
            seen = outcome[name]
            assert seen["computes with"][0][2:] == (1, 1) and seen["computes with"][1] and seen["output"], seen
            assert seen["kept"] and seen["type"] == kind and seen["gradient"] == torch.float32, seen


def test_weights_that_arrive_in_bfloat16_give_almost_the_same(
    ranks: list[dict[str, Any]], data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrives is the weights' bfloat16, with which one process computes the same."""
    monkeypatch.setattr(step_module, "CPU_PART", 4)
    alone = gradients(data[1], "micro_batch", Ranks(0, 1, torch.device("cpu")), round_weights=True, **HALF)
    exact = ranks[0]["micro_batch"]
    for name in ("half", "all, half"):
        loss, norm, grads = ranks[0][name]
        assert loss == pytest.approx(alone[0], rel=1e-5) and norm == pytest.approx(alone[1], rel=0.05)
        assert loss != exact[0] and loss == pytest.approx(exact[0], rel=0.03)
        assert all(grad.dtype == torch.float32 for grad in grads.values())
        both = [torch.cat([grad.flatten().float() for grad in each.values()]) for each in (grads, alone[2])]
        assert float(torch.cosine_similarity(*both, dim=0)) > 0.99


def test_machines_of_different_sizes_are_refused(ranks: list[dict[str, Any]]) -> None:
    for outcome in ranks:
        assert outcome["uneven"] == (
            "pretrain.shard_weights: node needs as many ranks on every machine, and they have 1, 2; set num_processes"
        )
