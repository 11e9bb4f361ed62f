"""Weights sharded over two ranks, and a tower that is locked: results, checkpoints and resuming equal those of one
process.

One launch of two ranks does all their work (`_work`); the tests check what it saved.
"""

import functools
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from align.model.dual_encoder import DualEncoder, load_model
from align.model.tokenizer import TextTokenizer
from align.training import state as state_module
from align.training import step as step_module
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch, Tokens
from align.training.lamb import Lamb
from align.training.ranks.buckets import gathered
from align.training.ranks.process_group import launch
from align.training.ranks.sharding import distributed_like, is_sharded, shard, shards
from align.training.stage import train_stage
from align.training.step import compute_gradients
from align.training.train import run
from tests.support import lamb_reference, training_data
from tests.support.rank_runs import Messages, ended_with, last
from tests.support.training_data import MODEL, TermAt, finetune_config, pretrain_config

BATCH = 32
SHORT = {
    "num_steps": 4, "warmup_steps": 1, "learning_rate": 0.005, "log_every_steps": 1, "validate_every_steps": 2,
    "checkpoint_every_steps": 1, "keep_checkpoints": 4,
}  # fmt: skip
#: Two ranks against one, with everything on that changes weights and gradients.
WHOLE = SHORT | {"clip_norm": 100.0, "best_metric": "val/effective_rank"}

#: Ways through a step: several parts in one backward pass, one backward pass per part, a block computed twice.
CASES = {
    "parts": ({}, {}),
    "micro_batch": ({"micro_batch": 8}, {}),
    "checkpointing": ({"micro_batch": 8, "gradient_checkpointing": "blocks"}, {}),
    "checkpointing, parts": ({"gradient_checkpointing": "blocks"}, {}),
    "cheap": ({"micro_batch": 8, "gradient_checkpointing": "cheap"}, {}),
}
COMPILED = {"compiled": ({"compile": True, "micro_batch": 8, "gradient_checkpointing": "blocks"}, {})}

#: Rows of parameters for LAMB: even, uneven, and fewer than ranks.
SHAPES = [(4, 3), (5, 2), (1, 6), (3,)]


@dataclass(frozen=True)
class Outcomes:
    """The results of the ranks: `ranks[r]` is that of rank r."""

    root: Path
    ranks: list[dict[str, Any]]

    def last(self, name, stage="pretrain"):
        return last(self.root, name, stage)


def _plan(data, checkpoints, log=None, **changes):
    return training_data.plan(data, checkpoints, pretrain_config(**(SHORT | changes)), log=log)


def _in_two(data, checkpoints, log=None, **changes):
    return _plan(data, checkpoints, log, **({"num_processes": 2, "shard_weights": True} | changes))


def gradients(tokenizer, case, ranks):
    """Loss, norm and all gradients of a batch, whole."""
    recipe, model_changes = map(dict, (CASES | COMPILED)[case])
    torch.manual_seed(0)
    words = TextTokenizer.load(tokenizer, MODEL.max_tokens)
    model = DualEncoder(MODEL.model_copy(update=model_changes), words.vocab_size).train()
    model.gradient_checkpointing = recipe.get("gradient_checkpointing", "none")
    config = pretrain_config(**({"batch_size": BATCH, "shard_weights": True} | recipe))
    with accelerated(model, config, ranks.device):
        if shards(config, ranks):
            shard(model, ranks)
        found = compute_gradients(model, config, ranks, _batch(model, words, ranks))
    return (
        float(found.loss),
        float(found.norm),
        gathered({name: param.grad for name, param in model.named_parameters()}),
    )


def _batch(model, words, ranks):
    """This rank's share."""
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 255, (BATCH, 32, 32, 3), dtype=np.uint8))
    texts = [" ".join(["red", "green", "a bar at the top", "yellow"][: 1 + row % 4]) for row in range(BATCH)]
    draws = torch.from_numpy(generator.random((BATCH, model.vision_model.num_blocks), dtype=np.float32))
    share = BATCH // ranks.world_size
    rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
    return Batch(images[rows], texts[rows], draws[rows], Tokens.of(words.ids(texts[rows]), words.pad_id))


def lamb(ranks):
    """Six steps of LAMB on the numbers of `test_lamb_on_shards_is_lamb`."""
    module, (starts, grads) = nn.Module(), _lamb_numbers()
    for index, start in enumerate(starts):
        module.register_parameter(str(index), nn.Parameter(torch.from_numpy(start.copy())))
    fully_shard(module, mesh=init_device_mesh("cpu", (ranks.world_size,)))
    params = list(module.parameters())
    groups = [{"params": params[:-1], "adapt": True}, {"params": params[-1:], "adapt": False, "weight_decay": 0.0}]
    optimiser = Lamb(groups, weight_decay=0.02, betas=(0.9, 0.99))
    optimiser.set_learning_rate(0.1)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = distributed_like(torch.from_numpy(grad), param)
        optimiser.step()
    return gathered(params)  # type: ignore[no-any-return]  # as deep as what it is given


def _lamb_numbers():
    generator = np.random.default_rng(0)
    starts = [generator.normal(size=shape) for shape in SHAPES]
    return starts, [[generator.normal(size=shape) for shape in SHAPES] for _ in range(6)]


def layouts(ranks):
    """How a convolution's weight lies in memory while it computes, kept, and as a gradient."""
    model = DualEncoder(MODEL, 50).train()
    shard(model, ranks)
    convolution = model.vision_model.encoder.blocks[1].expansion.expand_conv
    seen = {}

    def look(module, inputs, output):
        weight = module.weight
        seen["computes with"] = (tuple(weight.shape), weight.is_contiguous(memory_format=torch.channels_last))
        seen["output"] = output.is_contiguous(memory_format=torch.channels_last)

    convolution.register_forward_hook(look)
    model.vision_model(torch.zeros(4, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    kept = convolution._parameters["weight"]
    seen["kept"] = kept.to_local().stride() == kept.grad.to_local().stride() and kept.to_local().is_contiguous()
    return seen


_HUGE = functools.partial(GradScaler, init_scale=2.0**127)


def _work(plans, tokenizer, root, ranks):
    results = {}
    step_module.CPU_PAIRS_AT_ONCE = 4
    results |= {f"gradients, {case}": gradients(tokenizer, case, ranks) for case in CASES}
    results["lamb"], results["layouts"] = lamb(ranks), layouts(ranks)
    for name, each in plans:
        state_module.GradScaler = _HUGE if name == "scaled" else GradScaler  # type: ignore[misc]  # a stand-in
        # looking on changes the order of sums, and this run's result is compared up to rounding
        with Messages() if name == "resumed by shards" else nullcontext() as messages:
            results[name] = ended_with(each, ranks)
        if messages is not None:
            results["messages"] = messages.kinds
    torch.save(results, root / f"{ranks.rank}.pt")


TOWERS = {"image": "vision_model.", "text": "text_model."}


@pytest.fixture(scope="module")
def outcomes(data, tmp_path_factory):
    """Also of two ranks with each tower locked, whole or sharded in parts; and `one`, of a process alone."""
    root = tmp_path_factory.mktemp("outcomes")
    run(_plan(data, root / "one", **WHOLE))
    shutil.copytree(root / "one", root / "resumed by shards")
    for step in (3, 4):
        next((root / "resumed by shards").glob(f"*/step-{step:08d}.pt")).unlink()
    begun = training_data.plan(data, root / "begun", pretrain_config(num_steps=3))
    train_stage(begun, out=root / "model", reports=root / "reports")

    def locked(which, name, log=None, ranks=2):
        parts = {"shard_weights": True, "micro_batch": 4, "gradient_checkpointing": "blocks"}
        how = parts if name in ("sharded", "stopped") else {}
        recipe = finetune_config(**WHOLE, **how, locked=which, num_processes=ranks)
        made = training_data.plan(data, root / f"{which} {name}", recipe, initial=root / "model", log=log)
        return f"{which} {name}" if log is None else f"{which} first", made

    plans = [
        ("whole", _in_two(data, root / "two", **WHOLE)),
        ("stopped", _in_two(data, root / "stopped", TermAt(2), **WHOLE)),
        ("resumed", _in_two(data, root / "stopped", **WHOLE)),
        ("resumed by shards", _in_two(data, root / "resumed by shards", **WHOLE)),
        ("broken", _in_two(data, root / "broken", learning_rate=1e38, warmup_steps=3)),
        ("scaled", _in_two(data, root / "scaled", precision="float16", shard_weights=False)),
        *(locked(which, name) for which in TOWERS for name in ("whole", "sharded")),
        *(locked("image", "stopped", log) for log in (TermAt(2), None)),
    ]
    for which in TOWERS:
        run(locked(which, "one", ranks=1)[1])
    launch(functools.partial(_work, plans, data[1], root), 2, 1)
    return Outcomes(root, [torch.load(root / f"{rank}.pt") for rank in range(2)])


def assert_close(ours, theirs):
    """Two checkpoints of the same run are equal up to rounding."""
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine == pytest.approx(other, rel=1e-3)  # including recall@k, a share of eight
    for name, weight in theirs["model"].items():
        if weight.ndim > 1:  # a shift that batch-norm cancels follows rounding
            torch.testing.assert_close(ours["model"][name], weight, atol=1e-3, rtol=1e-2, msg=name)


def assert_same(ours, theirs):
    """Equal bit for bit, at every level."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert_same(ours[name], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    else:
        assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs


def test_two_ranks_equal_one_process(outcomes):
    one, two = outcomes.last("one"), outcomes.last("two")
    assert [outcome["whole"] for outcome in outcomes.ranks] == ["done", "done"]
    assert any(name.endswith("recall@10") for name in two["rows"][-1])
    assert two.keys() == one.keys() and two["model"].keys() == one["model"].keys()
    assert_close(two, one)
    assert next((outcomes.root / "two").glob("*/best.pt")).exists()


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_sums_over_ranks(outcomes, data, case):
    first, second = (outcome[f"gradients, {case}"] for outcome in outcomes.ranks)
    assert first[:2] == second[:2]
    assert_gradients(first, data[1])


@functools.cache
def _alone(tokenizer):
    """Those of one process, in one part."""
    alone = []
    launch(lambda ranks: alone.append(gradients(tokenizer, "parts", ranks)), 1, 1)
    return alone[0]


def assert_gradients(ours, tokenizer):
    """Against one process."""
    (loss, norm, grads), (whole_loss, whole_norm, whole) = ours, _alone(tokenizer)
    assert (loss, norm) == (pytest.approx(whole_loss, rel=1e-5), pytest.approx(whole_norm, rel=1e-3))
    largest = max(float(grad.norm()) for grad in whole.values())
    for name, grad in whole.items():  # weights that batch-norm cancels have gradients of rounding errors
        apart = float((grads[name] - grad).norm() / grad.norm().clamp(min=1e-3 * largest))
        assert apart < 2e-3, f"{name}: {apart}"


def _in_four(tokenizer, root, ranks):
    step_module.CPU_PAIRS_AT_ONCE = 4
    results = {case: gradients(tokenizer, case, ranks) for case in ("parts", "micro_batch", "cheap")}
    torch.save(results, root / f"{ranks.rank}.pt")


@pytest.mark.numerics
def test_four_ranks_are_as_two(data, tmp_path):
    launch(functools.partial(_in_four, data[1], tmp_path), 4, 1)
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(4))
    for case, found in first.items():
        assert all(other[case][:2] == found[:2] for other in others)
        assert_gradients(found, data[1])


def test_convolutions_keep_channels_last(outcomes):
    for outcome in outcomes.ranks:
        seen = outcome["layouts"]
        assert seen["computes with"][0][2:] == (1, 1) and seen["computes with"][1] and seen["output"], seen
        assert seen["kept"], seen


def _compile_in_two(tokenizer, out, ranks):
    compile = torch.compile
    torch.compile = functools.partial(compile, backend="aot_eager")  # type: ignore[assignment]  # no C++ compiler
    found = gradients(tokenizer, "compiled", ranks)
    if ranks.leads:
        torch.save(found, out)


@pytest.mark.tools
def test_compiled_blocks_may_be_sharded(data, tmp_path):
    launch(functools.partial(_compile_in_two, data[1], tmp_path / "out.pt"), 2, 1)
    assert_gradients(torch.load(tmp_path / "out.pt"), data[1])


def test_lamb_on_shards_is_lamb(outcomes):
    """Against the line-by-line reference; a trust ratio over one rank's rows would differ."""
    ours, (starts, grads) = outcomes.ranks[0]["lamb"], _lamb_numbers()
    for index, start in enumerate(starts):
        expected = lamb_reference.lamb(
            start, [step[index] for step in grads], rate=0.1, decay=0.02, beta2=0.99, adapt=start.ndim > 1
        )
        np.testing.assert_allclose(ours[index].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_stopped_and_resumed_equals_a_whole_run(outcomes):
    for outcome in outcomes.ranks:
        assert outcome["stopped"].startswith("StoppedError: stopped by SIGTERM after step 2 of 4")
        assert outcome["image first"].startswith("StoppedError: stopped by SIGTERM after step 2 of 4")
        assert (outcome["resumed"], outcome["image stopped"]) == ("done", "done")
    assert_same(outcomes.last("stopped"), outcomes.last("two"))
    assert_same(outcomes.last("image stopped", "finetune"), outcomes.last("image sharded", "finetune"))


def test_no_message_of_a_long_name_is_sent(outcomes):
    """They break the heap, see `align.training.ranks.buckets`; torch's functional collectives are such messages."""
    for outcome in outcomes.ranks:
        assert {"c10d.gather_.default", "c10d._allgather_base_.default"} <= outcome["messages"]
        assert not [kind for kind in outcome["messages"] if "functional" in kind or "coalesced" in kind]


def test_any_number_of_ranks_resumes_from_shards_and_shards_from_any(outcomes, data, tmp_path):
    assert_close(outcomes.last("resumed by shards"), outcomes.last("one"))
    shutil.copytree(outcomes.root / "two", tmp_path / "two")
    alone = _plan(data, tmp_path / "two", **WHOLE)
    for step in (3, 4):
        (alone.folder().directory / f"step-{step:08d}.pt").unlink()
    trained = run(alone)
    assert trained is not None and not is_sharded(trained.model)
    assert_close(alone.folder().load_latest(torch.device("cpu")), outcomes.last("one"))


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(outcomes):
    first, second = (outcome["broken"] for outcome in outcomes.ranks)
    assert first == second and first.startswith("NonFiniteLossError: the loss is ")


def test_all_ranks_leave_out_the_same_steps(outcomes, data, tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "GradScaler", _HUGE)
    one = run(_plan(data, tmp_path, precision="float16"))
    assert one is not None and [outcome["scaled"] for outcome in outcomes.ranks] == ["done", "done"]
    rows = outcomes.last("scaled")["rows"]
    for name in ("train/skipped_steps", "train/loss_scale"):
        assert [row[name] for row in rows] == [row[name] for row in one.rows]
    assert 0 < sum(row["train/skipped_steps"] for row in rows) <= 4


def test_one_rank_does_not_shard(outcomes, data, tmp_path):
    assert run(_plan(data, tmp_path, **WHOLE, shard_weights=True)).rows == outcomes.last("one")["rows"]


@pytest.mark.parametrize("which", TOWERS)
@pytest.mark.parametrize("case", ["whole", "sharded"])
def test_two_ranks_with_a_locked_tower_equal_one_process_and_leave_it_as_it_is(outcomes, which, case):
    one, two = (outcomes.last(f"{which} {name}", "finetune") for name in ("one", case))
    assert_close(two, one)
    assert len(two["optimiser"]["state"]) == len(one["optimiser"]["state"])
    before, after = load_model(outcomes.root / "model").state_dict(), two["model"]
    assert before.keys() == after.keys()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    locked = {name for name in before if name.startswith(TOWERS[which])}
    assert locked <= same and "text_projection.weight" not in same
