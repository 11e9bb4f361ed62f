"""Processes that are forks of one which has imported the model, and which has one thread, see `preloaded`.

For tests of what ranks compute, and of what a killed `align pretrain` leaves. How processes start and end is tested
with those that the product spawns.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.launcher import api


def preload() -> None:
    """Says what the process imports that forks; its first fork starts it."""
    multiprocessing.set_forkserver_preload(["pytest", "tests.support.preloaded"])


@contextmanager
def forked_ranks(method: str = "forkserver") -> Iterator[None]:
    """Within the block `launch` forks its ranks."""
    preload()
    config = api.LaunchConfig

    def forking(**values: Any) -> api.LaunchConfig:
        return config(**(values | {"start_method": method}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "LaunchConfig", forking)
        yield


class Command:
    """`align` as in tests/support/killing.py, as a fork. It forks its ranks itself, so that they end when it does."""

    def __init__(self, arguments: Sequence[str], cwd: Path) -> None:
        preload()
        self._errors = cwd.with_name(f"{cwd.name}.stderr")
        self._errors.write_bytes(b"")
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_align, args=(list(arguments), cwd, self._errors, dict(os.environ))
        )
        self._process.start()

    def ended(self, within_s: float | None = None) -> bool:
        self._process.join(within_s)
        return self._process.exitcode is not None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def require_success(self) -> None:
        assert self.exit_code == 0, self.errors[-2000:]

    @property
    def exit_code(self) -> int | None:
        return self._process.exitcode

    @property
    def errors(self) -> str:
        """What it has written to stdout and stderr."""
        return self._errors.read_text("utf-8", "replace")


def _align(arguments: list[str], cwd: Path, errors: Path, environment: dict[str, str]) -> None:
    from align.cli import main

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.register_at_fork(after_in_child=_close_locks)
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with forked_ranks("fork"):
        sys.exit(main(arguments))


def _close_locks() -> None:
    """What a process that is spawned does not inherit: the lock of the run, which a rank must not hold on to."""
    for file in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if file.readlink().name == "lock":
                os.close(int(file.name))
