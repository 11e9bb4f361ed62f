"""Two ranks, with whole weights or sharded ones (FSDP2), and with a locked tower: results, checkpoints and resuming are
those of one process.

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
from torch.utils._pytree import tree_flatten

from align.model.dual_encoder import DualEncoder, load_model
from align.model.tokenizer import TextTokenizer
from align.training import state as state_module
from align.training import step as step_module
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch, Tokens
from align.training.lamb import Lamb
from align.training.ranks.buckets import gathered
from align.training.ranks.process_group import launch
from align.training.ranks.sharding import distributed_like, shard, shards
from align.training.stage import train_stage
from align.training.step import compute_gradients
from align.training.train import run
from tests.support import training_data
from tests.support.rank_runs import Messages, ended_with, last
from tests.support.training_data import MODEL, TermAt, finetune_config, pretrain_config

BATCH = 32
#: With everything on that changes weights and gradients. The rate is small: rounding grows with it.
RECIPE = {
    "num_steps": 4, "warmup_steps": 1, "batch_size": 16, "learning_rate": 0.005, "log_every_steps": 1,
    "validate_every_steps": 2, "checkpoint_every_steps": 1, "keep_checkpoints": 4, "clip_norm": 100.0,
    "best_metric": "val/effective_rank",
}  # fmt: skip
#: Ways through a step: several parts in one backward pass, one backward pass per part, a block computed twice.
CASES = {
    "parts": {},
    "micro_batch": {"micro_batch": 8},
    "blocks": {"gradient_checkpointing": "blocks"},
    "cheap": {"micro_batch": 8, "gradient_checkpointing": "cheap"},
}
COMPILED = {"compile": True, "micro_batch": 8, "gradient_checkpointing": "blocks"}
TOWERS = {"image": "vision_model.", "text": "text_model."}
_HUGE = functools.partial(GradScaler, init_scale=2.0**127)


@dataclass(frozen=True)
class Outcomes:
    """The results of the ranks: `ranks[r]` is that of rank r."""

    root: Path
    ranks: list[dict[str, Any]]

    def last(self, name, stage="pretrain"):
        return last(self.root, name, stage)


def _plan(data, checkpoints, log=None, **changes):
    return training_data.plan(data, checkpoints, pretrain_config(**(RECIPE | changes)), log=log)


def _in_two(data, checkpoints, log=None, **changes):
    return _plan(data, checkpoints, log, **({"num_processes": 2, "shard_weights": True} | changes))


def begun(root, name, copy):
    """A copy of a run's checkpoints without those of its last two steps."""
    shutil.copytree(root / name, copy)
    for step in (3, 4):
        next(copy.glob(f"*/step-{step:08d}.pt")).unlink()
    return copy


def went_on(root, name, copy):
    """Whether the run resumed: one from the beginning writes the first checkpoint again."""
    first, again = (next(folder.glob("*/step-00000001.pt")).stat() for folder in (root / name, copy))
    return first.st_mtime_ns == again.st_mtime_ns


def gradients(tokenizer, recipe, ranks):
    """Loss, norm and all gradients of a batch, whole."""
    torch.manual_seed(0)
    words = TextTokenizer.load(tokenizer, MODEL.max_tokens)
    config = pretrain_config(**({"batch_size": BATCH, "shard_weights": True} | recipe))
    model = DualEncoder(MODEL, words.vocab_size).train()
    model.gradient_checkpointing = config.gradient_checkpointing
    generator, share = np.random.default_rng(0), BATCH // ranks.world_size
    rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
    images = torch.from_numpy(generator.integers(0, 255, (BATCH, 32, 32, 3), dtype=np.uint8))
    texts = [" ".join(["red", "green", "a bar at the top", "yellow"][: 1 + row % 4]) for row in range(BATCH)][rows]
    draws = torch.from_numpy(generator.random((BATCH, model.vision_model.num_blocks), dtype=np.float32))
    with accelerated(model, config, ranks.device):
        if shards(config, ranks):
            shard(model, ranks)
        batch = Batch(images[rows], texts, draws[rows], Tokens.of(words.ids(texts), words.pad_id))
        found = compute_gradients(model, config, ranks, batch)
    grads = gathered({name: param.grad for name, param in model.named_parameters()})
    return float(found.loss), float(found.norm), grads


def lamb(ranks):
    """How far six steps of LAMB on shards are from those on whole tensors, of an even number of rows, an uneven one,
    and fewer than ranks.
    """
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    whole = [nn.Parameter(draw(shape)) for shape in [(4, 3), (5, 2), (1, 6), (3,)]]
    module = nn.Module()
    for index, param in enumerate(whole):
        module.register_parameter(str(index), nn.Parameter(param.detach().clone()))
    fully_shard(module, mesh=init_device_mesh("cpu", (ranks.world_size,)))
    both = whole, list(module.parameters())
    groups = ([{"params": each[:-1], "adapt": True}, {"params": each[-1:], "adapt": False}] for each in both)
    optimisers = [Lamb(each, weight_decay=0.02, betas=(0.9, 0.99)) for each in groups]
    for _ in range(6):
        for param, part in zip(*both, strict=True):
            param.grad = draw(param.shape)
            part.grad = distributed_like(param.grad, part)
        for optimiser in optimisers:
            optimiser.set_learning_rate(0.1)
            optimiser.step()
    pairs = zip(whole, gathered(both[1]), strict=True)
    return [float((param.detach() - part).abs().max()) for param, part in pairs if ranks.leads]


def layouts(ranks):
    """Whether a convolution's weight lies as channels last while it computes, and as its gradient does when kept."""
    model = DualEncoder(MODEL, 50).train()
    shard(model, ranks)
    convolution, seen = model.vision_model.embeddings.convolution, []

    def look(module, inputs, output):
        seen.extend(each.is_contiguous(memory_format=torch.channels_last) for each in (module.weight, output))

    convolution.register_forward_hook(look)
    model.vision_model(torch.zeros(4, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    kept = convolution._parameters["weight"]
    return [*seen, kept.to_local().is_contiguous() and kept.to_local().stride() == kept.grad.to_local().stride()]


def _work(plans, tokenizer, root, ranks):
    step_module.CPU_PAIRS_AT_ONCE = 4
    results = {f"gradients, {case}": gradients(tokenizer, recipe, ranks) for case, recipe in CASES.items()}
    results["lamb"], results["layouts"] = lamb(ranks), layouts(ranks)
    for name, each in plans:
        state_module.GradScaler = _HUGE if name == "scaled" else GradScaler  # type: ignore[misc]  # a stand-in
        # looking on changes the order of sums, and this run's result is compared up to rounding
        with Messages() if name == "resumed by shards" else nullcontext() as messages:
            results[name] = ended_with(each, ranks)
        if messages is not None:
            results["messages"] = messages.kinds
    torch.save(results, root / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
def outcomes(data, tmp_path_factory):
    """Also of each tower locked, whole or sharded in parts; and those named `one`, of a process alone."""
    root = tmp_path_factory.mktemp("outcomes")
    run(_plan(data, root / "one"))
    start = training_data.plan(data, root / "start", pretrain_config(num_steps=3))
    train_stage(start, out=root / "model", reports=root / "reports")

    def locked(which, name, log=None, ranks=2):
        parts = {"shard_weights": True, "micro_batch": 4, "gradient_checkpointing": "blocks"}
        how = parts if name in ("sharded", "stopped") else {}
        recipe = finetune_config(**RECIPE, **how, locked=which, num_processes=ranks)
        made = training_data.plan(data, root / f"{which} {name}", recipe, initial=root / "model", log=log)
        return f"{which} {name}" if log is None else f"{which} first", made

    plans = [
        ("whole", _in_two(data, root / "whole", shard_weights=False)),
        ("sharded", _in_two(data, root / "sharded")),
        ("stopped", _in_two(data, root / "stopped", TermAt(2))),
        ("resumed", _in_two(data, root / "stopped")),
        ("resumed by shards", _in_two(data, begun(root, "one", root / "resumed by shards"))),
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
    assert ours.keys() == theirs.keys() and ours["model"].keys() == theirs["model"].keys()
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine == pytest.approx(other, rel=2e-3)  # including recall@k, a share of eight
    for name, weight in theirs["model"].items():
        if weight.ndim > 1 or name.endswith("num_batches_tracked"):  # a shift that batch-norm cancels follows rounding
            torch.testing.assert_close(ours["model"][name], weight, atol=1e-3, rtol=1e-2, msg=name)


def assert_same(ours, theirs):
    """Equal bit for bit, at every level."""
    (mine, tree), (others, other_tree) = tree_flatten(ours), tree_flatten(theirs)
    assert tree == other_tree
    for one, other in zip(mine, others, strict=True):
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_two_ranks_equal_one_process(outcomes, name):
    one, two = outcomes.last("one"), outcomes.last(name)
    assert [outcome[name] for outcome in outcomes.ranks] == ["done", "done"]
    assert any(name.endswith("recall@10") for name in two["rows"][-1])
    assert_close(two, one)
    assert next((outcomes.root / name).glob("*/best.pt")).exists()


def test_four_ranks_with_shards_resume_what_two_began(outcomes, data, tmp_path):
    four = _in_two(data, begun(outcomes.root, "whole", tmp_path / "four"), num_processes=4)
    run(four)
    assert_close(four.folder().load_latest(torch.device("cpu")), outcomes.last("one"))
    assert went_on(outcomes.root, "whole", tmp_path / "four")


def test_one_process_resumes_from_shards_and_shards_from_one_process(outcomes, data, tmp_path):
    assert_close(outcomes.last("resumed by shards"), outcomes.last("one"))
    assert went_on(outcomes.root, "one", outcomes.root / "resumed by shards")
    alone = _plan(data, begun(outcomes.root, "sharded", tmp_path / "alone"), shard_weights=True)  # which has no effect
    run(alone)
    assert_close(alone.folder().load_latest(torch.device("cpu")), outcomes.last("one"))
    assert went_on(outcomes.root, "sharded", tmp_path / "alone")


def test_stopped_and_resumed_equals_a_whole_run(outcomes):
    for outcome in outcomes.ranks:
        assert outcome["stopped"].startswith("StoppedError: stopped by SIGTERM after step 3 of 4")
        assert outcome["image first"].startswith("StoppedError: stopped by SIGTERM after step 3 of 4")
        assert (outcome["resumed"], outcome["image stopped"]) == ("done", "done")
    assert_same(outcomes.last("stopped"), outcomes.last("sharded"))
    assert_same(outcomes.last("image stopped", "finetune"), outcomes.last("image sharded", "finetune"))


def assert_gradients(ours, tokenizer):
    """Against one process, in one part."""
    alone = []
    launch(lambda ranks: alone.append(gradients(tokenizer, {}, ranks)), 1, 1)
    (loss, norm, grads), [(whole_loss, whole_norm, whole)] = ours, alone
    assert (loss, norm) == (pytest.approx(whole_loss, rel=1e-5), pytest.approx(whole_norm, rel=1e-3))
    largest = max(float(grad.norm()) for grad in whole.values())
    for name, grad in whole.items():  # weights that batch-norm cancels have gradients of rounding errors
        apart = float((grads[name] - grad).norm() / grad.norm().clamp(min=1e-3 * largest))
        assert apart < 2e-3, f"{name}: {apart}"


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_sums_over_ranks(outcomes, data, case):
    first, second = (outcome[f"gradients, {case}"] for outcome in outcomes.ranks)
    assert first[:2] == second[:2]
    assert_gradients(first, data[1])


def _compiled(tokenizer, out, ranks):
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]  # no C++ compiler
    found = gradients(tokenizer, COMPILED, ranks)
    if ranks.leads:
        torch.save(found, out)


@pytest.mark.tools
def test_compiled_blocks_may_be_sharded(data, tmp_path):
    launch(functools.partial(_compiled, data[1], tmp_path / "out.pt"), 2, 1)
    assert_gradients(torch.load(tmp_path / "out.pt"), data[1])


def test_lamb_on_shards_is_lamb(outcomes):
    """A trust ratio over one rank's rows would differ."""
    assert len(outcomes.ranks[0]["lamb"]) == 4 and max(outcomes.ranks[0]["lamb"]) < 1e-12


def test_convolutions_keep_channels_last(outcomes):
    assert [outcome["layouts"] for outcome in outcomes.ranks] == [[True, True, True]] * 2


def test_no_message_of_a_long_name_is_sent(outcomes):
    """They break the heap, see `align.training.ranks.buckets`; torch's functional collectives are such messages."""
    for outcome in outcomes.ranks:
        assert {"c10d.gather_.default", "c10d._allgather_base_.default"} <= outcome["messages"]
        assert not [kind for kind in outcome["messages"] if "functional" in kind or "coalesced" in kind]


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(outcomes):
    first, second = (outcome["broken"] for outcome in outcomes.ranks)
    assert first == second and first.startswith("NonFiniteLossError: the loss is ")


def test_all_ranks_leave_out_the_same_steps(outcomes, data, tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "GradScaler", _HUGE)
    one = run(_plan(data, tmp_path, precision="float16"))
    assert [outcome["scaled"] for outcome in outcomes.ranks] == ["done", "done"]
    rows = outcomes.last("scaled")["rows"]
    for name in ("train/skipped_steps", "train/loss_scale"):
        assert [row[name] for row in rows] == [row[name] for row in one.rows]
    assert 0 < sum(row["train/skipped_steps"] for row in rows) <= 4


@pytest.mark.parametrize("case", ["one", "whole", "sharded"])
@pytest.mark.parametrize("which", TOWERS)
def test_a_locked_tower_stays_as_it_is_and_all_else_learns(outcomes, which, case):
    """To the bit, its running statistics too; two ranks, in parts, as one process."""
    start, (one, saved) = (
        load_model(outcomes.root / "model"),
        (outcomes.last(f"{which} {name}", "finetune") for name in ("one", case)),
    )
    assert_close(saved, one)
    moved = {name for name, value in start.state_dict().items() if not torch.equal(value, saved["model"][name])}
    rest = {name for name, _ in start.named_parameters() if not name.startswith(TOWERS[which])}
    assert not [name for name in moved if name.startswith(TOWERS[which])]
    assert rest - moved <= {"text_model.embeddings.word_embeddings.weight"} and "log_temperature" in moved
    assert len(saved["optimiser"]["state"]) == len(rest)
    assert ("val/batch_norm_gap" in saved["rows"][-1]) == (which == "text")


@pytest.mark.parametrize("which", TOWERS)
@pytest.mark.parametrize("recompute", ["none", "cheap", "blocks"])
def test_nothing_of_a_locked_tower_is_kept_for_backward(which, recompute):
    model = DualEncoder(MODEL.model_copy(update={"stochastic_depth": 0.5}), 50).train()
    model.gradient_checkpointing = recompute  # type: ignore[assignment]  # mypy sees a str
    ids, draws = torch.arange(8).view(2, 4), torch.zeros(4, model.vision_model.num_blocks)
    tower, encode, inputs = {
        "image": (model.vision_model, model.encode_image, (torch.rand(4, 3, 32, 32), draws)),
        "text": (model.text_model, model.encode_text, (ids, torch.ones_like(ids))),
    }[which]

    def kept():
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value.nbytes), lambda value: value):
            encode(*inputs)
        return sum(saved)

    free = kept()
    model.lock(which)
    assert model.training and kept() < free / 4  # of the projection and the norm of an embedding
    model.eval(), model.train()
    assert kept() < free / 4
    assert not tower.training and not any(param.requires_grad for param in tower.parameters())
    model.lock("none")
    assert tower.training and kept() == free and all(param.requires_grad for param in model.parameters())


def test_a_tower_without_weights_to_start_from_is_not_locked():
    given = {"path": "b0.pth", "sha256": "a" * 64}
    for which, needs in (("image", "model.image_tower: timm:NAME"), ("text", "a model.text_tower of transformers")):
        with pytest.raises(ValueError, match=f"locked: {which} needs {which}_weights"):
            pretrain_config(locked=which)
        recipe = pretrain_config(**{"locked": which, f"{which}_weights": given})
        assert f"{which}_weights need {needs}" in str(recipe.against(MODEL, 1, 1))
    timm = MODEL.model_copy(update={"image_tower": "timm:test_vit"})
    assert pretrain_config(locked="image", image_weights=given).against(timm, 1, 1) is None
