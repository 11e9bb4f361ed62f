"""Tasks as arrays of SLURM jobs: `sbatch --array`. All nodes see the folder of the run, as clusters with SLURM do.

    ARRAY/task.pickle      what to do
    ARRAY/left-N.json      which items the array of try N does; its tasks divide them
    ARRAY/NNNNNN.pickle    the result of an item; it appears whole
    ARRAY/N-K.log          what task K of try N has printed

A task that ends without a result for each of its items is tried again. A run that is told to end cancels its array; one
that is killed leaves it at work: the next run does the same tasks, whose finished files it finds.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from align.display.console import say
from align.durable.files import replaced
from align.durable.processes import Culprits
from align.errors import ServiceError, StoppedError, one_line
from align.interfaces.executor import In, Kept, Out, Task
from align.services.executors.task import Result, result_of, worker_in

#: Tasks of an array; more items share tasks. SLURM's own limit (MaxArraySize) is 1,001 unless the site has changed it.
_TASKS_AT_ONCE = 1000
#: Arrays until each item has a result.
_TRIES = 3
_PAUSE_S = 0.5


class SlurmExecutor:
    """See `Executor`.

    Args:
        folder: that all nodes see.
        options: of sbatch, such as --partition=cpu, --mem=8G, --time=2:00:00.
        num_at_once: tasks of an array at the same time; None: as many as SLURM starts.
    """

    is_cluster = True

    def __init__(self, folder: Path, options: Sequence[str], num_at_once: int | None) -> None:
        self._folder, self._options = folder, tuple(options)
        self._num_at_once = num_at_once

    @property
    def num_at_once(self) -> int:
        """See `Executor`."""
        return self._num_at_once or _TASKS_AT_ONCE

    def map(self, task: Task[Kept, In, Out], items: Sequence[In]) -> Iterator[Out]:
        """See `Executor`."""
        if not items:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        array = Path(tempfile.mkdtemp(prefix="align-array-", dir=self._folder))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, array, ignore_errors=True)
            stack.enter_context(_told_to_end())
            (array / _TASK).write_bytes(pickle.dumps((task, list(items), str(Path.cwd()))))
            number, log, culprits = 0, array / "none", Culprits(task)
            for attempt in range(_TRIES):
                left = [one for one in range(number, len(items)) if not _result(array, one).exists()]
                if attempt and left:
                    say(f"slurm: {len(left):,} task(s) ended without a result, and are tried again")
                for is_over in self._array(array, attempt, left) if left else (True,):
                    while number < len(items) and _result(array, number).exists():
                        yield _value(_result(array, number))
                        number, culprits.num_good = number + 1, culprits.num_good + 1
                    if is_over and left:
                        log = array / f"{attempt}-{left.index(number) % _num_tasks(left) if number in left else 0}.log"
            for lost in range(number, len(items)):
                if _result(array, lost).exists():
                    culprits.num_good += 1
                    yield _value(_result(array, lost))
                else:
                    yield culprits.result(items[lost], f"{_TRIES} tasks ended over it without a result{_end(log)}")
            culprits.require_good_items()

    def _array(self, array: Path, attempt: int, left: list[int]) -> Iterator[bool]:
        """Runs an array for these items; yields whether it is over, again and again. It is cancelled with its run.

        It is over when all results are there: sbatch asks whether its job has ended after 2, 10, 42, 74 ... seconds.
        """
        (array / f"left-{attempt}.json").write_text(json.dumps(left), encoding="utf-8")
        num_tasks = _num_tasks(left)
        at_once = f"%{self._num_at_once}" if self._num_at_once else ""
        command = [
            "sbatch", "--wait", "--parsable", "--job-name=align", f"--array=0-{num_tasks - 1}{at_once}",
            f"--output={array}/{attempt}-%a.log", *self._options,
            f"--wrap=exec {shlex.join([sys.executable, '-m', __name__, str(array), str(attempt)])}",
        ]  # fmt: skip
        try:
            running = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise ServiceError(f"engine.runner is slurm, but sbatch does not start here ({one_line(error)})") from None
        with running:
            assert running.stdout is not None and running.stderr is not None
            job, is_over = "", False
            try:
                job = running.stdout.readline().strip().partition(";")[0]
                while not is_over:
                    is_over = running.poll() is not None or all(_result(array, one).exists() for one in reversed(left))
                    yield is_over
                    if not is_over:
                        time.sleep(_PAUSE_S)
            finally:
                if job and not is_over:
                    subprocess.run(["scancel", job], check=False, stdin=subprocess.DEVNULL, capture_output=True)
                    say(f"slurm: array {job} is cancelled")
                running.terminate()
            if not job:
                raise ServiceError(f"sbatch refuses: {one_line(Exception(running.stderr.read()))}; see engine.sbatch")


_TASK = "task.pickle"


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Within the block SIGTERM is an error, as Ctrl-C is: Python would end at once, and leave the array at work."""

    def stop(*_: object) -> None:
        raise StoppedError("stopped by SIGTERM; run again to resume")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _num_tasks(left: Sequence[int]) -> int:
    return min(len(left), _TASKS_AT_ONCE)


def _result(array: Path, number: int) -> Path:
    return array / f"{number:06d}.pickle"


def _value(path: Path) -> Any:
    result: Result[Any] = pickle.loads(path.read_bytes())  # of our own task; the folder is the user's
    return result.get()


def _end(log: Path) -> str:
    """The last line of a task that failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line for line in reversed(lines) if line.strip()), None)
    return f"; the last one has said: {last[:300]}" if last else "; it has said nothing: its memory may be too small"


def _run_task(array: Path, attempt: int, number: int) -> None:
    """Task `number` of an array: its share of the items."""
    left = json.loads((array / f"left-{attempt}.json").read_bytes())
    task, items, folder = pickle.loads((array / _TASK).read_bytes())
    with tempfile.TemporaryDirectory(prefix="align-task-") as scratch:
        worker = worker_in(folder, task, Path(scratch))
        for item in left[number :: _num_tasks(left)]:
            path = _result(array, item)
            if path.exists():
                continue
            result = result_of(worker, items[item])
            with replaced(path, on_disk=False) as beside:
                beside.write_bytes(pickle.dumps(result))
        os.chdir("/")


if __name__ == "__main__":
    _run_task(Path(sys.argv[1]), int(sys.argv[2]), int(os.environ["SLURM_ARRAY_TASK_ID"]))
