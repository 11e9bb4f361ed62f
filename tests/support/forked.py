"""Ranks that are forks of a process which has imported the model: the imports of a rank take five seconds of CPU.

For tests of what ranks compute. How processes start, die and end is tested with those that the product spawns.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.distributed.launcher import api


def preload() -> None:
    """Says what the process imports that forks; its first fork starts it."""
    multiprocessing.set_forkserver_preload(
        ["align.training.run", "align.training.sharding", "torch.distributed.elastic.multiprocessing", "pytest"]
    )


@contextmanager
def forked_ranks() -> Iterator[None]:
    """Within the block `launch` forks its ranks."""
    preload()
    config = api.LaunchConfig

    def forking(**values: Any) -> api.LaunchConfig:
        return config(**(values | {"start_method": "forkserver"}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "LaunchConfig", forking)
        yield
