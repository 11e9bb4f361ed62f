"""Opens the executor that `engine.runner` names, and the one that is this machine's own processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from align.config.infrastructure import EngineConfig
from align.durable.cores import cores
from align.durable.processes import in_processes
from align.interfaces.executor import Executor, In, Kept, Out, Task

#: Of a Spark Connect server, which does SQL and no tasks of Python.
CONNECT = "sc://"


@dataclass(frozen=True)
class LocalExecutor:
    """See `Executor`: worker processes of this machine, which end with this process.

    Attributes:
        num_workers: processes; None: one per core.
    """

    num_workers: int | None = None
    is_cluster = False

    @property
    def num_at_once(self) -> int:
        """See `Executor`."""
        return self.num_workers or cores()

    def map(self, task: Task[Kept, In, Out], items: Sequence[In]) -> Iterator[Out]:
        """See `Executor`."""
        count = min(self.num_at_once, len(items)) or 1
        return in_processes(task, items, count)


@contextmanager
def open_executor(config: EngineConfig, folder: Path) -> Iterator[Executor]:
    """Opens the executor, with scratch files in a folder, unless `engine.temp_directory` is set.

    Raises ServiceError if the cluster is unavailable.
    """
    scratch = (config.temp_directory or folder).resolve()
    if config.runner == "spark" and not config.spark_master.startswith(CONNECT):
        from align.services.executors.spark_tasks import SparkExecutor
        from align.services.spark_engine import open_session

        with open_session(config, scratch) as session:
            yield SparkExecutor(session, config.num_workers)
    elif config.runner == "slurm":
        from align.services.executors.slurm import SlurmExecutor

        yield SlurmExecutor(scratch, config.sbatch, config.num_workers)
    else:
        yield LocalExecutor(config.num_workers)
