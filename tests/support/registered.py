"""The outputs of a finished pipeline, to register in a real MLflow."""

import functools
import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align.config.release import RegisterConfig
from align.formats.filtered import decisions_digest
from align.formats.query_ranks import RANKS, QueryRanks, Ranked, write_ranks
from align.formats.shards import read_manifest
from align.release.packaging.package import package
from align.release.promotion.promote import promote
from align.release.registration.register import Origin, register
from align.release.registration.results import PipelineOutputs
from align.services.tracking.tracker import Tracker
from tests.support import small_data, small_model
from tests.support.params import load_params
from tests.support.small_data import Pair

ORIGIN = Origin("0123abc", "lock-digest", "flow-1", cached_stages=("ingest", "filter"), policy_digest="policy-digest")
NAMES = (f"model-{number}" for number in itertools.count())
RECALL = "concepts/image_to_text/recall@10"
VALUES = {
    "pretrain": {"lr": 1e-3, "crop": [1, 2]}, "paths": {"raw": "data/raw"}, "health": {"price_per_hour": None},
    "cluster": {"num_nodes": 1}, "promote": {"metrics": [RECALL]},
}  # fmt: skip
#: Queries of the measured set, one for each of as many concepts; an order by chance has a recall@10 of 0.1.
NUM_QUERIES, NUM_ITEMS = 200, 100
SETS = {"concepts": "c" * 64}


def ranks(recall, sets=None):
    """The ranks of a model that answers this share of the queries, the same ones first."""
    number = round(recall * NUM_QUERIES)
    ids = tuple(f"{index:03}" for index in range(NUM_QUERIES))
    part = Ranked(
        queries=ids, clusters=ids, labels=None, num_correct=np.ones(NUM_QUERIES, np.int64), num_items=NUM_ITEMS,
        ranks=np.array([1] * number + [NUM_ITEMS] * (NUM_QUERIES - number)),
    )  # fmt: skip
    ways = ("image_to_text", "text_to_image")
    return QueryRanks(sets or SETS, {("concepts", way): part for way in ways})


def outlook(tracker, version):
    """In place of what a promotion would say."""
    return f"better than champion 0; version {version.number} would be promoted"


@dataclass
class Project:
    """The outputs of a finished pipeline."""

    root: Path
    config: RegisterConfig
    tracker: Tracker

    def evaluate(self, recall, *, keeps_ranks=True):
        """A new evaluation, and with it a new packaged model."""
        _evaluate(self.root, recall, keeps_ranks)

    def register(self, run_id=None, tracker=None, values=None):
        values, tracker = VALUES | (values or {}), tracker or self.tracker
        return register(
            self.config, self.outputs, values, origin=ORIGIN, tracker=tracker, run_id=run_id, outlook=outlook
        )

    def register_again(self):
        """As the command does, in the store that the environment names."""
        return register(self.config, self.outputs, VALUES, origin=ORIGIN, tracker=None, run_id=None, outlook=outlook)

    @property
    def outputs(self):
        """The folders of the stages."""
        return PipelineOutputs(self.root / "packaged", self.root / "shards", self.root / "reports", ())

    def experiment(self):
        """The id of its experiment."""
        found = self.tracker._client.get_experiment_by_name(self.config.experiment)
        return str(found.experiment_id)

    def candidate(self, recall, *, keeps_ranks=True):
        self.evaluate(recall, keeps_ranks=keeps_ranks)
        return self.register().version.number

    def params(self, *more):
        """The tests' values over the outputs here; there is no set of today but the test split."""
        values = {"model_name": self.config.model_name, "experiment": self.config.experiment}
        overrides = [f"register.{name}={value}" for name, value in values.items()]
        overrides += [f"promote.metrics=[{RECALL}]", "promote.margin=0.02", "paths.archive=archive"]
        names = ("evaluation", "filtered", "shards", "reports", "packaged", "finetuned")
        overrides += [f"paths.{name}={self.root / name}" for name in names]
        return load_params(overrides=[*overrides, *more])

    def promote(self, *more):
        return promote(self.params(*more), self.tracker)[0]

    def aliases(self):
        found = {
            alias: self.tracker.registry.version_at(self.config.model_name, alias)
            for alias in ("candidate", "champion")
        }
        return {alias: version.number for alias, version in found.items() if version}


def _evaluate(root, recall, keeps_ranks=True):
    metrics = {RECALL: recall, f"{RECALL}/low": round(recall - 0.1, 6), f"{RECALL}/high": round(recall + 0.1, 6)}
    metrics[f"{RECALL}/chance"] = 0.1
    reports, folder = root / "reports", root / "reports/evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report.json").write_text(json.dumps({"evaluation_digest": "d" * 64}))
    if keeps_ranks:
        write_ranks(ranks(recall), folder / RANKS)
    (folder / "report.html").write_text("<h1>Evaluation</h1>")
    package(model=root / "models/finetuned", evaluation=folder, out=root / "packaged", reports=reports / "package")


@functools.cache
def _outputs():
    """A folder that a process makes once: `write` copies it."""
    made = tempfile.TemporaryDirectory(prefix="align-registered-")
    tmp_path = Path(made.name)
    small_model.write(tmp_path)
    small_data.write(tmp_path, [Pair(f"picture number {index}", index) for index in range(30)])
    digest = read_manifest(small_data.write_shards(tmp_path)).digest
    reports = tmp_path / "reports"
    decisions = decisions_digest(tmp_path / "filtered")
    small_data.write_verdict(reports / "quality", passed=True, data=decisions)
    small_data.write_verdict(reports / "quality_shards", passed=True, data=digest)
    (reports / "shard").mkdir()
    (reports / "shard" / "metrics.json").write_text(json.dumps({"shard/num_images": 30}))
    (reports / "shard" / "report.json").write_text(json.dumps({"digest": digest, "decisions": decisions}))
    (reports / "pretrain").mkdir()
    rows = [
        {"step": step, "train/loss": 5.0 - step / 10, "val/image_to_text/recall@1": step / 100} for step in (10, 20, 30)
    ]
    (reports / "pretrain" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _evaluate(tmp_path, 0.5)
    return made


def write(tmp_path, mlflow_server):
    """Writes the outputs, whose evaluation says 0.5, below a folder; each project has an experiment of its own."""
    shutil.copytree(_outputs().name, tmp_path, dirs_exist_ok=True)
    name = next(NAMES)
    return Project(tmp_path, RegisterConfig(experiment=name, model_name=name), Tracker(mlflow_server))
