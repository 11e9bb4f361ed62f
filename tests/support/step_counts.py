"""Counts what a training step sends and asks for, while a dispatch mode watches.

The step is that of rank 0 of eight, with torch's stand-in for a network, which sends nothing. It takes the ways of a
GPU; validation, checkpoints and the loop's vote, one small message a step, are not part of it.
"""

from collections import Counter
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training import loss, step
from align.training.batches.batch import Batch, Tokens
from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import shard, shards
from align.training.state import new_state
from tests.support.training_data import MODEL, pretrain_config

NUM_RANKS, SHARE = 8, 64
#: Operations that answer with values, or with a size of values: a host waits for its device.
ASKS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "argwhere")


class StepCounts(TorchDispatchMode):
    """Counts a step.

    Attributes:
        messages, sent_bytes: to other ranks.
        asked: what the host waited for.
    """

    def __init__(self):
        super().__init__()
        self.messages, self.sent_bytes = 0, 0
        self.asked = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ASKS:
            self.asked[name] += 1
        if func.namespace == "c10d":
            self.messages += 1
            tensors = [each for each in tree_leaves(args[:2]) if isinstance(each, Tensor)]
            self.sent_bytes += max(each.nbytes for each in tensors)  # the whole of what is gathered or scattered
        return func(*args, **(kwargs or {}))


def count(tokenizer, **values):
    """Counts one step: gradients and update."""
    words = TextTokenizer.load(tokenizer, MODEL.max_tokens)
    with _eight_ranks() as ranks, _as_on_a_gpu():
        recipe = pretrain_config(batch_size=SHARE * ranks.world_size, **values)
        model = DualEncoder(MODEL, words.vocab_size).train()
        if shards(recipe, ranks):
            shard(model, ranks)
        images = torch.zeros(SHARE, MODEL.image_px, MODEL.image_px, 3, dtype=torch.uint8)
        texts = [f"a bar at the top {'red ' * (row % 5)}" for row in range(SHARE)]
        draws = torch.rand(SHARE, model.vision_model.num_blocks)
        batch = Batch(images, texts, draws, Tokens.of(words.ids(texts), words.pad_id))
        state = new_state(model, recipe)
        with StepCounts() as counts:
            step.compute_gradients(model, recipe, ranks, batch)
            state.optimiser.step()
    return counts


@contextmanager
def _eight_ranks():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=NUM_RANKS)
    try:
        yield Ranks(0, NUM_RANKS, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


@contextmanager
def _as_on_a_gpu():
    """A CPU takes the ways of a GPU: on a CPU a question costs nothing, so there it may be asked."""
    ours = loss
    before = ours._tile_function, torch.compiler.is_exporting
    ours._tile_function = lambda function, _: ours._ON_CUDA.get(function, function)
    cast(Any, torch.compiler).is_exporting = lambda: True  # texts are not sorted by length, nor asked for padding
    try:
        yield
    finally:
        ours._tile_function, cast(Any, torch.compiler).is_exporting = before
