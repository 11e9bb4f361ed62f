"""What a finished pipeline wrote, as MLflow gets it: digests, params, metrics, and the verdict on the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.config.model import ModelConfig
from align.config.params import flattened
from align.config.sections import changing_bytes
from align.display.report import reported
from align.durable.files import sha256_folder, to_json
from align.errors import CorruptError, DataError
from align.formats.model_folder import CONFIG, ModelFolderConfig, read_config
from align.formats.shards import read_manifest
from align.formats.verdict import NOT_GATED, QUALITY, SHARDS, TABLES, require_passed
from align.release.registration.shown import metrics_of
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST

#: The reports, and sections of params.yaml, of the stages that make data/shards.
_MAKE_SHARDS = ("ingest", "download", "filter", "validate", TABLES, "shard", SHARDS)
#: MLflow refuses longer tags.
_MAX_TAG = 5000


@dataclass(frozen=True)
class PipelineOutputs:
    """The folders that `align register` reads.

    Attributes:
        packaged: models/packaged.
        shards: data/shards.
        reports: the folder of all stages' reports.
        others: stages that did not make this model; their reports and values belong to another model.
        index: data/index, which `align serve` fetches with the model; None: it is not registered.
        finetuned: models/finetuned, which tells whether the index is of this model.
    """

    packaged: Path
    shards: Path
    reports: Path
    others: tuple[str, ...]
    index: Path | None = None
    finetuned: Path | None = None

    def report_folders(self) -> list[Path]:
        """The reports on what made this model, by name."""
        folders = self.reports.iterdir() if self.reports.is_dir() else ()
        return sorted(path for path in folders if path.is_dir() and path.name not in self.others)


@dataclass(frozen=True)
class Results:
    """What names a run, and what the run shows.

    Attributes:
        model_digest: sha256 of the packaged model.
        data_digest: sha256 of the shards' manifest; of a model that saw none, the last of its data.
        history: tags that say what trained the model; see `_history`.
        not_gated: those of its data that no gate has judged.
        accepted: expectations that failed and that a person accepted, as "NAME, by WHO: WHY".
        params: `section.key` -> value, of the sections that change bytes.
        metrics: the metrics of every stage.
        evaluation_digest: names the sets that the model was measured on.
    """

    model_digest: str
    data_digest: str
    history: Mapping[str, str]
    not_gated: tuple[str, ...]
    accepted: tuple[str, ...]
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    evaluation_digest: str

    @property
    def digest(self) -> str:
        """Hex sha256 that names these results: equal results belong to one run."""
        named = [self.model_digest, self.data_digest, self.params, self.metrics]
        return hashlib.sha256(to_json(named).encode()).hexdigest()

    def tags(self) -> dict[str, str]:
        """Tags of the run and of a new version."""
        tags = {
            MODEL_DIGEST: self.model_digest,
            DATA_DIGEST: self.data_digest,
            QUALITY: NOT_GATED if self.not_gated else "passed",
            "align.evaluation_digest": self.evaluation_digest,
        }
        return (
            tags
            | dict(self.history)
            | ({"align.not_gated": _listed(self.not_gated)} if self.not_gated else {})
            | ({"align.quality_accepted": "; ".join(self.accepted)[:_MAX_TAG]} if self.accepted else {})
        )


def own(outputs: PipelineOutputs) -> PipelineOutputs:
    """The same without the stages that make data/shards, if the packaged model saw none."""
    configs = list(outputs.packaged.glob(f"artifacts/*/{CONFIG}"))  # `read_results` says what is wrong with others
    saw_none = len(configs) == 1 and read_config(configs[0].parent).saw_no_shards
    return replace(outputs, others=(*outputs.others, *_MAKE_SHARDS)) if saw_none else outputs


def read_results(outputs: PipelineOutputs, values: Mapping[str, Any]) -> Results:
    """Reads the results of all stages, and checks that model and data may be registered.

    Args:
        outputs: the folders.
        values: params.yaml, section -> key -> value.

    Raises:
        DataError: something to register is missing, or a verdict is on other data than the shards or the decisions that
            they were made from.
        GateError: the quality gate refused the data.
        CorruptError: the packaged model is not the one that its report names.
    """
    reports = outputs.reports
    packaged = _report(reports / "package")
    model_digest = packaged["digest"]
    if not outputs.packaged.is_dir():
        raise DataError(f"{outputs.packaged}: no such folder; run `align package` first")
    if sha256_folder(outputs.packaged) != model_digest:
        raise CorruptError(
            f"{outputs.packaged}: differs from the model that {reports / 'package'} reports; run `align package` again"
        )
    model, accepted = _model(outputs), list[dict[str, str] | None]()
    if model.saw_no_shards:
        data_digest = model.not_gated[-1]
    else:
        data_digest = read_manifest(outputs.shards).digest
        require_passed(reports / TABLES, _decisions(reports / "shard", data_digest, outputs.shards), outputs.shards)
        require_passed(reports / SHARDS, data_digest, outputs.shards)
        accepted = [row["accepted"] for gate in (TABLES, SHARDS) for row in _report(reports / gate)["expectations"]]
    return Results(
        model_digest=model_digest,
        data_digest=data_digest,
        history=_history(packaged),
        not_gated=model.not_gated,
        accepted=tuple(f"{one['expectation']}, by {one['by']}: {one['reason']}" for one in accepted if one),
        params=flattened(_values(outputs, values)),
        metrics=metrics_of(outputs.report_folders()),
        evaluation_digest=_report(reports / "evaluation")["evaluation_digest"],
    )


def _decisions(report: Path, data_digest: str, shards: Path) -> str:
    """The digest of the decisions that the shards were made from.

    Args:
        report: of `align shard`.
        data_digest: of the shards' manifest.
        shards: their folder.

    Raises:
        DataError: there is no report, or it is about other shards.
    """
    made = _report(report)
    if made["digest"] != data_digest:
        raise DataError(f"{report}: is about other shards than {shards}; run `align shard` with the same paths")
    return str(made["decisions"])


def _values(outputs: PipelineOutputs, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that this model was made with: section -> key -> value. Its shape is in its folder."""
    changing = changing_bytes(values)
    if not outputs.others:
        return changing
    found = {name: content for name, content in changing.items() if name not in outputs.others}
    return found | {ModelConfig.section: _model(outputs).model.model_dump(mode="json")}


def _model(outputs: PipelineOutputs) -> ModelFolderConfig:
    (folder,) = (path.parent for path in outputs.packaged.glob(f"artifacts/*/{CONFIG}"))
    return read_config(folder)


def _history(packaged: Mapping[str, Any]) -> dict[str, str]:
    """`align.trained_on`: digests of data, or `nothing`; and where an imported model comes from."""
    tags = {"align.trained_on": _listed(packaged["trained_on"]) or "nothing"}
    if imported := packaged["imported"]:
        tags |= {"align.imported_from": imported["folder"] or "unknown", "align.imported_weights": imported["weights"]}
    return {name: value[:_MAX_TAG] for name, value in tags.items()}


def _listed(digests: Sequence[str]) -> str:
    """The digests, with `unknown` in place of those for which a tag has no room: there is more data than it names."""
    text = ", ".join(digests)
    if len(text) <= _MAX_TAG:
        return text
    kept = text[: _MAX_TAG - len(", unknown")].rpartition(", ")[0]
    return f"{kept}, unknown"


def _report(folder: Path) -> dict[str, Any]:
    if not (path := folder / "report.json").is_file():
        raise DataError(f"{path}: no such file; run the whole pipeline first (`dvc repro` or `align run`)")
    return reported(folder)
