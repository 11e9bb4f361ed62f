"""The outputs of a finished pipeline, to register in a real MLflow."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.formats.filtered import decisions_digest
from align.formats.shards import read_manifest
from align.release.origin import Origin
from align.release.package import package
from align.release.promote import PromotionDecision, promote
from align.release.register import Registration, register
from align.release.results import PipelineOutputs
from align.services.tracking import Tracker
from tests.support import small_data, small_model
from tests.support.small_data import Pair

ORIGIN = Origin("0123abc", "lock-digest", "flow-1", cached_stages=("ingest", "filter"))
NAMES = (f"model-{number}" for number in itertools.count())
RECALL = "concepts/image_to_text/recall@10"
VALUES: dict[str, Any] = {
    "pretrain": {"lr": 1e-3, "crop": [1, 2]},
    "paths": {"raw": "data/raw"},
    "health": {"price_per_hour": None},
    "cluster": {"num_nodes": 1},
}
PROMOTE = PromoteConfig(metrics=[RECALL], min_gain=0.02, min_times_chance=3.0, approval=False, approval_timeout_h=72.0)


@dataclass
class Project:
    """The outputs of a finished pipeline."""

    root: Path
    config: RegisterConfig
    tracker: Tracker

    def evaluate(self, recall: float, low: float = 0.4) -> None:
        """A new evaluation, and with it a new packaged model."""
        metrics = {RECALL: recall, f"{RECALL}/low": low, f"{RECALL}/chance": 0.1}
        folder = self.root / "reports" / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "report.html").write_text("<h1>Evaluation</h1>")
        package(
            model=self.root / "models" / "finetuned",
            evaluation=folder,
            out=self.root / "packaged",
            reports=self.root / "reports" / "package",
        )

    def register(
        self, run_id: str | None = None, tracker: Tracker | None = None, values: dict[str, Any] | None = None
    ) -> Registration:
        outputs = PipelineOutputs(self.root / "packaged", self.root / "shards", self.root / "reports", ())
        return register(
            self.config,
            outputs,
            VALUES | (values or {}),
            origin=ORIGIN,
            tracker=tracker or self.tracker,
            run_id=run_id,
        )

    def candidate(self, recall: float, low: float = 0.4) -> int:
        self.evaluate(recall, low)
        return self.register().version.number

    def promote(self) -> PromotionDecision:
        return promote(PROMOTE, self.config.model_name, self.tracker)

    def aliases(self) -> dict[str, int]:
        found = {
            alias: self.tracker.registry.version_at(self.config.model_name, alias)
            for alias in ("candidate", "champion", "previous")
        }
        return {alias: version.number for alias, version in found.items() if version}


def write(tmp_path: Path, mlflow_server: str) -> Project:
    """Writes the outputs, whose evaluation says 0.5, below a folder; each project has an experiment of its own."""
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
    name = next(NAMES)
    project = Project(tmp_path, RegisterConfig(experiment=name, model_name=name), Tracker(mlflow_server))
    project.evaluate(0.5)
    return project
