"""A process that has imported little, to be forked often.

A fork copies the tables of all memory: of pytest's process, which has imported torch and MLflow, that takes 0.05 to 0.1
CPU seconds; of this one, a hundredth of that.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import spawn

import pytest

from tests.support import warm


@contextmanager
def small_process() -> Iterator[Executor]:
    """Runs functions of a test's module, one after another, in one process that is started for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "get_executable", warm.started_executable)
        executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        executor.submit(int).result()
    with executor:
        yield executor
