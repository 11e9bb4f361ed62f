"""Training plans as ranks that are there already run them, one after the other; what a run sends, what it leaves."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from align.durable.checkpoint import CheckpointFolder
from align.errors import AlignError
from align.training.train import train_rank


def ended_with(plan, ranks):
    """Trains to the end: "done", or what ended it."""
    try:
        train_rank(plan, ranks)
    except AlignError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


class Messages(TorchDispatchMode):
    """Notes the kinds of messages that are sent within the block."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "c10d" in func.namespace:
            self.kinds.add(str(func))
        return func(*args, **(kwargs or {}))


def last(root, name, stage="pretrain"):
    """The last checkpoint of the run whose checkpoints are in `root/name`."""
    return CheckpointFolder(next((root / name).glob(f"{stage}-*")), 4).load_latest(torch.device("cpu"))
