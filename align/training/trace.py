"""A trace of a few steps: what each thread and the GPU did, and who held which memory."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import profile, record_function

from align.display.console import say

#: Folder of the traces, in that of the run's checkpoints.
TRACE = "trace"


class Trace:
    """Records steps of one rank: torch.profiler's trace, and the history of CUDA's memory.

    Args:
        steps: the first and the last one, counted from 1; None: nothing is recorded.
        folder: gets `rank-N.json.gz` for ui.perfetto.dev, and on CUDA `rank-N.pickle` for pytorch.org/memory_viz.
        rank: N.
        device: of the rank.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, rank: int, device: torch.device) -> None:
        self._steps, self._file, self._on_gpu = steps, folder / TRACE / f"rank-{rank}.json.gz", device.type == "cuda"
        self._open: tuple[profile, record_function] | None = None

    def at(self, done: int) -> None:
        """Starts, divides and ends the recording; called between steps, of which so many are done."""
        if self._steps is None or not self._steps[0] - 1 <= done < self._steps[1]:
            self.end()
            return
        if self._open is None:
            if self._on_gpu:
                torch.cuda.memory._record_memory_history()
            profiler = profile(record_shapes=True, profile_memory=True)
            profiler.start()
        else:
            profiler, step = self._open
            step.__exit__(None, None, None)
        self._open = profiler, record_function(f"step {done + 1}").__enter__()

    def end(self) -> None:
        """Writes what was recorded, if anything was."""
        if self._open is None:
            return
        (profiler, step), self._open = self._open, None
        step.__exit__(None, None, None)
        profiler.stop()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._file))
        if self._on_gpu:
            torch.cuda.memory._dump_snapshot(str(self._file.with_suffix("").with_suffix(".pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        say(f"trace of steps: {self._file}")
