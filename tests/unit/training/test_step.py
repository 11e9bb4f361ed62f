"""A step: gradients equal for any micro-batch and number of ranks, little memory, and a host that does not wait."""

import functools
import math
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from align.config.model import ModelConfig
from align.errors import NonFiniteLossError
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.pipeline.work import Work
from align.training import loss as loss_module
from align.training import step as module
from align.training import train
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch, Tokens
from align.training.loss import align_loss
from align.training.ranks import buckets as buckets_module
from align.training.ranks.process_group import Ranks, launch
from align.training.state import State, new_state
from align.training.step import compute_gradients
from align.training.train import run, start_alike
from tests.support import training_data
from tests.support.double_precision import double_precision
from tests.support.step_counts import SHARE, count
from tests.support.training_data import MODEL, pretrain_config

ALONE = Ranks(0, 1, torch.device("cpu"))
BATCH = 32


@pytest.fixture(scope="module")
def tokenizer(data):
    return data[1]


def whole_batch(words):
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 255, (BATCH, 32, 32, 3), dtype=np.uint8))
    parts = ["red", "green", "a bar at the top", "left side in blue", "yellow"]
    texts = [" ".join(parts[: 1 + index % 5]) for index in range(BATCH)]
    return Batch(
        images, texts, torch.from_numpy(generator.random((BATCH, 16), dtype=np.float32)),
        Tokens.of(words.ids(texts), words.pad_id),
    )  # fmt: skip


class Step(NamedTuple):
    """A step's loss and norm, and its gradients by name."""

    loss: float
    norm: float
    grads: dict[str, Tensor]


def gradients(tokenizer, recipe, ranks=ALONE, watch=None, *, dtype=torch.float64):
    """One step. `watch` is called when a backward pass has finished a parameter."""
    torch.manual_seed(0)
    words = TextTokenizer.load(tokenizer, MODEL.max_tokens)
    model = DualEncoder(MODEL, words.vocab_size).train().to(ranks.device, dtype)
    model.gradient_checkpointing = recipe.gradient_checkpointing
    batch, share = whole_batch(words), BATCH // ranks.world_size
    rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
    batch = Batch(
        batch.images[rows], batch.texts[rows], batch.draws[rows, : model.vision_model.num_blocks],
        Tokens.of(words.ids(batch.texts[rows]), words.pad_id),
    )  # fmt: skip
    for param in model.parameters() if watch else ():
        param.register_post_accumulate_grad_hook(watch)  # type: ignore[no-untyped-call]  # untyped in torch
    exact = double_precision() if dtype == torch.float64 else nullcontext()
    with exact, accelerated(model, recipe, ranks.device):
        loss, norm = compute_gradients(model, recipe, ranks, batch)
    grads = {name: param.grad.cpu() for name, param in model.named_parameters() if param.grad is not None}
    return Step(float(loss), float(norm), grads)


def assert_equal(ours, theirs, loss=1e-10, norm=1e-10, grads=1e-10):
    """But for rounding: at most so far apart, as shares."""
    assert ours.loss == pytest.approx(theirs.loss, rel=loss)
    assert ours.norm == pytest.approx(theirs.norm, rel=norm)
    largest = max(float(gradient.norm()) for gradient in theirs.grads.values())
    for name, gradient in theirs.grads.items():  # weights that batch-norm cancels have gradients of rounding errors
        apart = float((ours.grads[name] - gradient).norm() / gradient.norm().clamp(min=1e-3 * largest))
        assert apart < grads, f"{name}: {apart}"


@functools.cache
def whole(tokenizer):
    """Those of all pairs at once, which no test changes."""
    return gradients(tokenizer, pretrain_config(batch_size=BATCH, precision="float32"))


@pytest.mark.parametrize("micro_batch", [4, 8, 12, 32])
def test_a_micro_batch_changes_no_gradient(tokenizer, micro_batch, device):
    """Nor that of the temperature: adding it once per part would be wrong by the number of parts."""
    assert float(whole(tokenizer).grads["log_temperature"].abs()) > 1e-3
    in_parts = pretrain_config(batch_size=BATCH, precision="float32", micro_batch=micro_batch)
    assert_equal(gradients(tokenizer, in_parts, Ranks(0, 1, device)), whole(tokenizer))


def with_fewer_negatives(images, texts, temperature, groups):
    """The definition, written out: a pair is told from those whose number in the batch leaves the same rest."""
    scores, total = (images @ texts.T / temperature).tolist(), 0.0
    for table in (scores, [list(column) for column in zip(*scores, strict=True)]):
        for i in range(BATCH):
            seen = [j for j in range(BATCH) if j % groups == i % groups]
            log_sum = math.log(sum(math.exp(table[i][j]) for j in seen))
            for j in seen:
                target = 0.1 / len(seen) + (0.9 if i == j else 0.0)
                total -= target * (table[i][j] - log_sum) / BATCH
    return total


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_fewer_negatives_are_groups_of_the_global_batch(tokenizer, share, monkeypatch):
    recipe = pretrain_config(batch_size=BATCH, negatives_share=share)
    seen = []
    loss_of = module._loss

    def watched(model, recipe, embeds, ranks):
        seen.append((embeds[0].detach(), embeds[1].detach()))
        return loss_of(model, recipe, embeds, ranks)

    monkeypatch.setattr(module, "_loss", watched)
    some = gradients(tokenizer, recipe)
    expected = with_fewer_negatives(*seen[0], MODEL.temperature_init, round(1 / share))
    assert some.loss == pytest.approx(expected, rel=1e-6)  # the temperature is a float32's logarithm at first
    assert_equal(gradients(tokenizer, pretrain_config(batch_size=BATCH, negatives_share=share, micro_batch=8)), some)


def test_shares_of_negatives_that_cannot_be():
    with pytest.raises(ValidationError, match=r"expected 1, 0.5 or 0.25: the paper's"):
        pretrain_config(negatives_share=0.3)
    some = pretrain_config(batch_size=12, negatives_share=0.25)
    assert some.against(MODEL, 1, 1) is None
    uneven = MODEL.model_copy(update={"batch_norm_group": 1})
    assert "negatives_share 0.25 does not divide a rank's 6 pairs" in str(some.against(uneven, 1, 2))


@pytest.mark.parametrize("micro_batch", [4, None])
def test_float32_differs_by_its_rounding(tokenizer, micro_batch, device):
    """A cosine, a sum of 16 products of rounded numbers whose sizes add up to 1, is wrong by 19 / 2^24 at most. Four of
    them, divided by the temperature 0.1, are in a loss of 9.7: 5e-6. As much again is for the towers' own rounding, and
    their gradients pass batch-norm over four samples.
    """
    recipe = pretrain_config(batch_size=BATCH, micro_batch=micro_batch, precision="float32")
    ours = gradients(tokenizer, recipe, Ranks(0, 1, device), dtype=torch.float32)
    assert_equal(ours, whole(tokenizer), loss=1e-5, norm=1e-3, grads=2e-3)


@pytest.mark.parametrize(("changes", "bound"), [
    ({"gradient_checkpointing": "cheap"}, 1e-3), ({"gradient_checkpointing": "blocks"}, 1e-3),
    ({"precision": "bfloat16"}, 0.25),
])  # fmt: skip
def test_a_card_computes_what_a_cpu_does(tokenizer, changes, bound, card):
    """All gradients as one vector; on a CPU the towers are float32 in every precision."""
    exact, recipe = whole(tokenizer), pretrain_config(batch_size=BATCH, **{"precision": "float32"} | changes)
    found = gradients(tokenizer, recipe, Ranks(0, 1, card), dtype=torch.float32)
    mine, theirs = (torch.cat([each.grads[name].double().flatten() for name in exact.grads]) for each in (found, exact))
    assert found.loss == pytest.approx(exact.loss, rel=bound)
    assert float((mine - theirs).norm() / theirs.norm()) < bound


def test_the_host_waits_for_a_card_once_in_a_step(tokenizer, card):
    """By torch's own count, with the update and the values of the step before."""
    words, recipe = TextTokenizer.load(tokenizer, MODEL.max_tokens), pretrain_config(batch_size=BATCH)
    model, ranks = DualEncoder(MODEL, words.vocab_size).train().to(card), Ranks(0, 1, card)
    state, batch = new_state(model, recipe), whole_batch(words)
    batch = replace(batch, draws=batch.draws[:, : model.vision_model.num_blocks])

    def step():
        state.optimiser.set_learning_rate(1e-3)
        found = compute_gradients(model, recipe, ranks, batch)
        state.optimiser.step()
        return found

    step(), step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            earlier, _ = step(), step()
            earlier.loss.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in seen if "called a synchronizing" in str(each.message)]) <= 2


def test_texts_in_parts_by_length_change_no_gradient(tokenizer, monkeypatch):
    recipe = pretrain_config(batch_size=BATCH)
    gpu = torch.device("cuda", 0)
    assert [module.text_part_size(recipe, BATCH, device) for device in (ALONE.device, gpu)] == [32, 8]
    for without in ({"micro_batch": 32}, {"shard_weights": True}):
        assert module.text_part_size(pretrain_config(batch_size=BATCH, **without), BATCH, gpu) == 32
    whole = gradients(tokenizer, recipe)
    monkeypatch.setattr(module, "text_part_size", lambda *_: 8)
    assert_equal(gradients(tokenizer, recipe), whole)


def test_clipping_scales_all_gradients_together(tokenizer):
    loss, norm, free = whole(tokenizer)
    assert norm == pytest.approx(
        float(sum((grad.square().sum() for grad in free.values()), torch.tensor(0.0)).sqrt()), rel=1e-12
    )
    same_loss, same_norm, clipped = gradients(tokenizer, pretrain_config(batch_size=BATCH, clip_norm=norm / 4))
    assert (same_loss, same_norm) == (loss, norm)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 4)
    assert all(
        torch.equal(grad, free[name])
        for name, grad in gradients(tokenizer, pretrain_config(batch_size=BATCH, clip_norm=2 * norm)).grads.items()
    )


#: Whole, and in parts.
WAYS = (None, 4)


def _save(tokenizer, out, ranks):
    """Gradients of both ways, and what happened in which order: a gradient was complete, a message started."""
    buckets_module.BUCKET_BYTES = 16384
    fewer = gradients(tokenizer, pretrain_config(batch_size=BATCH, negatives_share=0.25), ranks)
    start_sum, saved = Ranks.start_sum, {}
    for micro_batch in WAYS:
        events = []

        def sent(ranks, tensor, events=events):
            events.append("message")
            return start_sum(ranks, tensor)

        Ranks.start_sum = sent  # type: ignore[method-assign]
        recipe = pretrain_config(batch_size=BATCH, micro_batch=micro_batch)
        step = gradients(tokenizer, recipe, ranks, functools.partial(_note, events))
        pieces = len({grad.untyped_storage().data_ptr() for grad in step.grads.values()})
        buckets_module.USE_REDUCER = True
        reduced = gradients(tokenizer, recipe, ranks)
        buckets_module.USE_REDUCER = False
        saved[micro_batch] = (tuple(step), events, pieces, tuple(reduced))
    torch.manual_seed(ranks.rank)  # as if the CPUs drew other digits
    model = DualEncoder(MODEL, 100)
    before = _apart(model, ranks)
    start_alike(model, ranks)
    after = _apart(model, ranks)
    if ranks.leads:
        torch.save((saved, tuple(fewer), before, after), out)


def _apart(model, ranks):
    """The largest difference of any number in the ranks' models."""
    everyone = ranks.gather(torch.cat([value.flatten().double() for value in model.state_dict().values()])[None])
    return float((everyone - everyone[0]).abs().max())


def _note(events, _):
    events.append("gradient")


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.numerics)])
def test_ranks_and_micro_batches_change_no_gradient(tokenizer, tmp_path, world_size):
    """And gradients travel while the backward pass runs; afterwards they are views of what travelled, not copies."""
    launch(functools.partial(_save, tokenizer, tmp_path / "out.pt"), world_size, 1)
    saved, fewer, apart_before, apart_after = torch.load(tmp_path / "out.pt")
    assert apart_before > 0 and apart_after == 0  # ranks start with the same weights
    assert_equal(Step(*fewer), gradients(tokenizer, pretrain_config(batch_size=BATCH, negatives_share=0.25)))
    for micro_batch, (step, events, pieces, reduced) in saved.items():
        assert_equal(Step(*step), whole(tokenizer))
        assert_equal(Step(*reduced), whole(tokenizer))  # DDP's reducer, which is closer than a millionth
        last = len(events) - events[::-1].index("gradient")
        before, messages = events[:last].count("message"), events.count("message")
        assert messages == pieces > 5, micro_batch
        assert before >= messages - 1, f"{micro_batch}: {before} of {messages} messages start before backward ends"
        if micro_batch is not None:  # only the last of the parts sends
            assert events.index("message") > (BATCH // world_size // micro_batch - 1) * 10


def test_activations_are_those_of_a_micro_batch(tokenizer):
    def most_saved(micro_batch):
        held = most = 0

        class Saved:
            def __init__(self, tensor):
                nonlocal held, most
                self.tensor, self.size = tensor, tensor.nbytes
                held += self.size
                most = max(most, held)

            def __del__(self):
                nonlocal held
                held -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            gradients(tokenizer, pretrain_config(batch_size=BATCH, micro_batch=micro_batch))
        return most

    assert most_saved(4) < most_saved(None) / 4


class _Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for a device: they answer with values, or with a size of values."""

    ASKS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "item", "argwhere")

    def __init__(self):
        super().__init__()
        self.asked = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == ask or name == f"_{ask}" or name.startswith(f"{ask}_") for ask in self.ASKS):
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A CPU takes the ways of a GPU: on a CPU a question costs nothing, so there it may be asked."""
    monkeypatch.setattr(loss_module, "_tile_function", lambda function, _: loss_module._ON_CUDA.get(function, function))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)  # texts are not sorted, nor asked for padding


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_the_host_waits_for_nothing_within_a_step(data, tmp_path, monkeypatch, as_on_a_gpu, micro_batch):
    """Steps of a whole run; what they leave is read when a row or a checkpoint is due."""
    events, waits = [], _Waits()

    def counted(function, event):
        def call(*arguments):
            events.append(event)
            with waits if event != "read" else nullcontext():
                return function(*arguments)

        return call

    monkeypatch.setattr(train, "compute_gradients", counted(train.compute_gradients, "gradients"))
    monkeypatch.setattr(State, "update", counted(State.update, "update"))
    monkeypatch.setattr(State, "read", counted(State.read, "read"))
    recipe = pretrain_config(micro_batch=micro_batch, num_steps=5, log_every_steps=4, checkpoint_every_steps=5)
    run(training_data.plan(data, tmp_path, recipe))
    assert waits.asked == {}
    # the fourth writes a row and the fifth ends
    assert "".join(event[0] for event in events) == "gu" * 4 + "r" + "gu" + "r"


def test_what_counts_the_waits_sees_one():
    with _Waits() as waits:
        float(torch.ones(1)), bool(torch.ones(1) > 0), torch.ones(3).nonzero()
    assert waits.asked.total() >= 3


@pytest.mark.parametrize("what", ["loss", "norm"])
def test_no_checkpoint_holds_a_step_that_was_not_finite(data, tmp_path, monkeypatch, what):
    """Step 3 is broken, and its values are read before the next checkpoint is written."""
    compute, calls = train.compute_gradients, []

    def broken(*arguments):
        calls.append(1)
        gradients = compute(*arguments)
        return gradients._replace(**{what: torch.tensor(math.nan)}) if len(calls) == 3 else gradients

    monkeypatch.setattr(train, "compute_gradients", broken)
    for saved_at, started in ((3, 3), (2, 4)):  # with a checkpoint at the broken step, and without
        calls.clear()
        recipe = pretrain_config(log_every_steps=8, validate_every_steps=8, checkpoint_every_steps=saved_at)
        plan = training_data.plan(data, tmp_path / str(saved_at), recipe)
        with pytest.raises(
            NonFiniteLossError, match=rf"the {what}.* is nan at step 3 \(learning rate .*, temperature 0\.1"
        ):
            run(plan)
        assert len(calls) == started
        assert plan.folder().steps() == ([] if saved_at == 3 else [2])


def test_a_step_asks_nothing_and_sends_what_it_must(tokenizer):
    whole, parts = (count(tokenizer, micro_batch=micro_batch) for micro_batch in (None, SHARE // 4))
    assert not whole.asked and not parts.asked
    assert parts.messages == whole.messages > 0  # gradients once, embeddings once


def test_each_part_of_a_step_fetches_sharded_weights(tokenizer):
    whole, parts = (count(tokenizer, shard_weights=True, micro_batch=each) for each in (None, SHARE // 4))
    assert parts.messages > 3 * whole.messages and not parts.asked


FEW = 8


def images(model, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(FEW, 3, 32, 32, generator=generator) * 2 - 1
    return model.encode_image(pixels, torch.rand(FEW, model.vision_model.num_blocks, generator=generator))


def texts(model, seed):
    ids = torch.randint(5, 50, (FEW, 16), generator=torch.Generator().manual_seed(seed))
    return model.encode_text(ids, torch.ones_like(ids))


def kept_bytes(work):
    """What lives on for a backward pass."""
    with Work() as counted:
        result = work()
    kept = counted.kept_bytes
    del result  # it had to keep its graph until here
    return kept


@pytest.fixture
def model():
    torch.manual_seed(0)
    tower = {"width_coefficient": 0.25, "depth_coefficient": 0.5}
    text = {"width": 16, "layers": 3, "heads": 2}
    changes = {"image_tower": tower, "text_tower": text, "stochastic_depth": 0.5}
    return DualEncoder(ModelConfig.model_validate(MODEL.model_dump() | changes), vocab_size=50).train()


def loss_and_gradients(model):
    """Of a batch in two parts: the second one's draws must not be those that the first is computed again with."""
    model.zero_grad()
    image_embeds = torch.cat([images(model, 1), images(model, 2)])
    loss = align_loss(image_embeds, torch.cat([texts(model, 3), texts(model, 4)]), model.temperature, 0.1)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return float(loss.detach()), {name: param.grad.clone() for name, param in model.named_parameters()}


@pytest.mark.parametrize("what", ["cheap", "blocks"])
@pytest.mark.parametrize("group", [4, 64])
def test_loss_and_gradients_stay_the_same(model, group, what):
    model = DualEncoder(model.config.model_copy(update={"batch_norm_group": group}), 50).train()
    assert model.gradient_checkpointing == "none"
    plain = loss_and_gradients(model)
    model.gradient_checkpointing = what
    again = loss_and_gradients(model)
    assert again[0] == plain[0]
    for name, grad in plain[1].items():
        torch.testing.assert_close(again[1][name], grad, atol=1e-7, rtol=1e-5, msg=name)
    model.gradient_checkpointing = "none"
    assert loss_and_gradients(model)[0] == plain[0]


@pytest.mark.parametrize(
    ("tower", "what", "at_most"), [(images, "cheap", 0.75), (images, "blocks", 0.4), (texts, "blocks", 0.4)]
)
def test_fewer_bytes_are_kept(model, tower, what, at_most):
    plain = kept_bytes(lambda: tower(model, 1))
    model.gradient_checkpointing = what
    again = kept_bytes(lambda: tower(model, 1))
    assert 0 < again < at_most * plain, (again, plain)


def test_evaluation_is_not_computed_twice(model):
    model.gradient_checkpointing = "blocks"
    with torch.inference_mode():
        assert images(model.eval(), 1).shape == (FEW, model.config.embed_width)
    assert model.gradient_checkpointing == "blocks"
