"""Sections that say where and how fast, never what: `engine`, `store`, `cluster`, `health`. None is DVC's."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from align.config.params import Section
from align.config.paths import PathField

#: What computes the filter's network.
Device = Literal["cpu", "cuda"]


class EngineConfig(Section):
    """Who does tasks and SQL, and the limits of both."""

    section: ClassVar[str] = "engine"
    changes_bytes: ClassVar[bool] = False

    #: Tasks over shards: processes of this machine; a Spark cluster (`pip install align-mlops[spark]`, and Java), which
    #: also does the SQL over whole tables; or arrays of SLURM jobs. Elsewhere DuckDB does the SQL, on this machine.
    runner: Literal["local", "spark", "slurm"]
    #: In Spark's notation: local[*], spark://HOST:PORT, sc://HOST:PORT (Connect), yarn, k8s://...
    spark_master: Annotated[str, Field(min_length=1)]
    #: Options of sbatch, such as --partition=cpu, --mem=8G or --time=2:00:00; they are those of a task.
    sbatch: Annotated[tuple[str, ...], Field(strict=False)]
    #: Tasks at the same time; None means one per core, of this machine or of the cluster.
    num_workers: PositiveInt | None
    #: In DuckDB's notation, such as 1GB. Beyond it the engine spills to `temp_directory`.
    memory_limit: str = Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(MB|GB|MiB|GiB)$")
    #: Threads for SQL, for picture decoding and for the NSFW classifier; None means one per core.
    num_threads: PositiveInt | None
    #: What computes the filter's network, by onnxruntime. Scores of two devices may differ in their last digits.
    device: Device
    #: Folder for scratch files; None means the system's.
    temp_directory: PathField | None

    @property
    def memory_bytes(self) -> int:
        """`memory_limit` in bytes."""
        number, unit = self.memory_limit.rstrip("MGiB"), self.memory_limit.lstrip("0123456789.")
        return round(float(number) * {"MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}[unit])

    def for_sql(self, store: StoreConfig) -> EngineConfig:
        """Who does the SQL: Spark reads tables where all its machines see them, so never with `store.work`."""
        return self.model_copy(update={"runner": "local"}) if store.work else self


class StoreConfig(Section):
    """An object store for tars, and how to reach it. Endpoint and credentials are AWS_* variables."""

    section: ClassVar[str] = "store"
    changes_bytes: ClassVar[bool] = False
    #: Parts and requests at the same time, per process.
    num_connections: ClassVar[int] = 8

    #: s3://bucket/prefix, or a folder: tars of data/raw and data/shards are stored there under their sha256, and the
    #: folders keep tables and manifests only. None keeps everything in the folders, and so in DVC's cache.
    objects: Annotated[str, Field(min_length=1)] | None
    #: s3://bucket/prefix for copies of training checkpoints; None keeps them on this machine only.
    checkpoints: Annotated[str, Field(pattern=r"^s3://[^/]+")] | None
    #: s3://bucket/prefix: the machines of a cluster (engine.runner) give each other finished work there; None: they see
    #: this folder under the same path.
    work: Annotated[str, Field(pattern=r"^s3://[^/]+")] | None
    #: Folder for checked copies of what was read from the store.
    cache: PathField
    #: Folder for measurements of evaluation images by filter and evaluate, for later runs; None: measured in each run.
    features: PathField | None
    #: Attempts after the first.
    num_retries: NonNegativeInt
    #: An attempt without an answer for this long has failed.
    timeout_s: PositiveFloat

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.work is not None and not (self.objects or "").startswith("s3://"):
            raise ValueError(
                f"store.objects: {self.objects}: machines that share only store.work need the tars in s3://..., too"
            )
        return self


#: Prefect's names of work pools, without characters that have a meaning in a shell or an address.
Pool = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)]


class ClusterConfig(Section):
    """The machines of a training job, which all run the same command, each with its own `node_rank`."""

    section: ClassVar[str] = "cluster"
    changes_bytes: ClassVar[bool] = False

    num_nodes: int = Field(ge=1)
    #: The number of this machine. Machine 0 leads: it writes checkpoints, reports and the model.
    node_rank: int = Field(ge=0)
    #: HOST:PORT at which the others reach node 0.
    rendezvous: Annotated[str, Field(pattern=r"^[^:\s]+:\d+$")] | None
    #: The most restarts of one machine's ranks after one has ended.
    max_restarts: int = Field(ge=0)
    #: Seconds that machines wait for each other, and ranks in a step.
    patience_s: int = Field(ge=1)
    #: Seconds that ranks have to write a checkpoint and end after SIGTERM.
    stop_s: int = Field(ge=1)
    #: The work pool whose worker runs the training stages on its machine; None: this machine does.
    training_pool: Pool | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.node_rank >= self.num_nodes:
            raise ValueError(f"node_rank {self.node_rank} must be less than num_nodes {self.num_nodes}")
        if self.num_nodes > 1 and self.rendezvous is None:
            raise ValueError("several nodes need rendezvous: HOST:PORT of node 0")
        return self


class HealthConfig(Section):
    """What training has to know of a device to report its use; the bounds of its signs: `align.training.health`."""

    section: ClassVar[str] = "health"
    changes_bytes: ClassVar[bool] = False

    #: Peak of one device in the precision used; training reports its share of it (MFU). None: not reported.
    device_tflops: float | None = Field(gt=0)
    #: Price of one device, for the cost of a run; None: not reported.
    price_per_hour: float | None = Field(ge=0)
