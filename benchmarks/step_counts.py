"""What a training step sends and asks for, counted while a dispatch mode watches it: messages, waits, operations.

The demo's towers as rank 0 of eight, with torch's stand-in for a network, which sends nothing. The step
takes the ways of a GPU; validation, checkpoints and the loop's vote, one small message a step, are not part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

from align.config.model import ModelConfig
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training import loss, step
from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import shard, shards
from align.training.state import new_state
from benchmarks.image_tower import Counts
from benchmarks.overlap import share
from benchmarks.presets import recipe
from benchmarks.world import World

NUM_RANKS, SHARE = 8, 64
#: Operations that answer with values, or with a size of values: a host waits for its device.
ASKS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "argwhere")
_ROWS: tuple[tuple[str, dict[str, object]], ...] = (
    ("`shard_weights: false`", {}),
    ("`true`", {"shard_weights": True}),
)


class StepCounts(Counts):
    """Counts a step.

    Attributes:
        messages, sent_bytes: to other ranks.
        asked: what the host waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages, self.sent_bytes = 0, 0
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKS:
            self.asked[name] += 1
        if func.namespace != "c10d":
            return super().__torch_dispatch__(func, types, args, kwargs)
        self.messages += 1
        tensors = [each for each in tree_leaves(args[:2]) if isinstance(each, Tensor)]
        self.sent_bytes += max(each.nbytes for each in tensors)  # the whole of what is gathered or scattered
        return func(*args, **(kwargs or {}))


def counted_steps(world: World) -> str:
    """The table, as Markdown."""
    lines = [
        f"| a step of {SHARE} pairs, rank 0 of {NUM_RANKS} | `micro_batch` | messages | the host waits | operations |",
        "|---|--:|--:|--:|--:|",
    ]
    for title, values in _ROWS:
        for parts in (1, 4):
            micro_batch = None if parts == 1 else SHARE // parts
            found = count(world, micro_batch=micro_batch, **values)
            sent = f"{found.messages:,} ({found.sent_bytes / 2**20:,.1f} MiB)"
            asked, calls = found.asked.total(), len(found.done)
            lines.append(f"| {title} | {micro_batch or ''} | {sent} | {asked} | {calls:,} |")
    return "\n".join(lines)


def count(world: World, **values: object) -> StepCounts:
    """Counts one step: gradients and update."""
    config = world.params.section(ModelConfig)
    tokenizer = TextTokenizer.load(world.tokenizer, config.max_tokens)
    with _eight_ranks() as ranks, _as_on_a_gpu():
        config_of_run = recipe(world, num_steps=1, batch_size=SHARE * ranks.world_size, **values)
        model = DualEncoder(config, tokenizer.vocab_size).train()
        if shards(config_of_run, ranks):
            shard(model, ranks)
        state, batch = new_state(model, config_of_run), share(model, ranks, SHARE)
        with StepCounts() as counts:
            step.compute_gradients(model, config_of_run, ranks, tokenizer, batch)
            state.optimiser.step()
    return counts


@contextmanager
def _eight_ranks() -> Iterator[Ranks]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=NUM_RANKS)
    try:
        yield Ranks(0, NUM_RANKS, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """A CPU takes the ways of a GPU: on a CPU a question costs nothing, so there it may be asked."""
    ours: Any = loss
    before = ours._tile_function, torch.compiler.is_exporting
    ours._tile_function = lambda function, _: ours._ON_CUDA.get(function, function)
    cast(Any, torch.compiler).is_exporting = lambda: True  # texts are not sorted by length, nor asked for padding
    try:
        yield
    finally:
        ours._tile_function, cast(Any, torch.compiler).is_exporting = before
