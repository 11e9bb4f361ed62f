"""evaluate: retrieval, zero-shot and nearest-neighbour figures of the fine-tuned model -> reports/evaluation.

Owns which sets are measured: every set of the evaluation folder and, as set `test`, the test split of the shards. That
split comes from the training sources (its clusters are held out): it says how well the model learned what it was shown,
where the evaluation sets say how well that transfers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.paths import PathsConfig
from align.config.store import StoreConfig
from align.console import say
from align.errors import DataError
from align.evaluate.figures import (
    DIRECTIONS,
    Example,
    confusion_figure,
    curves_figure,
    examples,
    examples_figure,
    recall_figure,
)
from align.evaluate.measure import Classification, Retrieval, measure_classification, measure_retrieval
from align.evaluate.page import evaluation_page
from align.evaluate.recall import Score
from align.figure import png
from align.files import replace_directory, write_bytes, write_text
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, load_sets
from align.formats.shards import iter_samples
from align.model.embedder import Embedder, Encoder
from align.report import Report, record_runtime, write_report
from align.services.store import materialised


class EvaluateReport(Report):
    """The figures, and what stands behind them.

    Attributes:
        sets: name -> kind, description and counts.
        classes: set -> class -> number of query images and zero-shot accuracy.
    """

    sets: dict[str, dict[str, Any]]
    classes: dict[str, dict[str, dict[str, float]]]


def evaluate(
    config: EvaluateConfig,
    *,
    encoder: Encoder,
    sets: Sequence[EvaluationSet],
    curves: Mapping[str, Path],
    reports: Path,
) -> EvaluateReport:
    """Measures every set and writes the report, its pictures and its page.

    Args:
        config: section `evaluate`.
        encoder: the model.
        sets: what to measure, in any order.
        curves: stage -> its `metrics.jsonl`; a missing file leaves its curve out.
        reports: the folder of this stage's report; replaced whole.

    Raises:
        DataError: no set, an empty set, or embeddings that are not finite.
    """
    if not sets:
        raise DataError("evaluate: no evaluation set and no test split; check paths.evaluation and paths.shards")
    retrievals, classifications = _measure(config, encoder, sets)
    drawn: dict[str, tuple[list[Example], list[Example]]] = {}
    if retrievals:
        for direction in DIRECTIONS:
            drawn[direction] = examples(retrievals[0], direction, number=config.num_examples, seed=config.seed)
    runs = {stage: rows for stage, path in curves.items() if (rows := _read_curve(path))}
    pictures: dict[str, bytes] = {}
    if retrievals:
        pictures["recall.png"] = png(recall_figure({result.source.name: result.scores for result in retrievals}))
        pictures["retrieval.png"] = png(examples_figure(drawn))
    for result in classifications:
        pictures[f"{result.source.name}_confusion.png"] = png(confusion_figure(result))
    if runs:
        pictures["curves.png"] = png(curves_figure(runs))

    report = _report(retrievals, classifications)
    with replace_directory(reports) as part:
        for name, data in pictures.items():
            write_bytes(part / name, data)
        write_text(part / "report.html", evaluation_page(retrievals, classifications, drawn, pictures))
        write_report(report, part)
    return report


def shards_test_set(shards: Path, max_images: int) -> list[EvaluationSet]:
    """The test split as a retrieval set named `test`, its first `max_images` images; empty if that is none of them."""
    images = [
        EvaluationImage(sample.key, sample.image, sample.key, sample.texts, None, None, "query")
        for sample in islice(iter_samples(shards, "test"), max_images)
    ]
    description = "held-out clusters of the training sources"
    return [EvaluationSet("test", "retrieval", description, images, (), ())] if images else []


def _measure(
    config: EvaluateConfig, encoder: Encoder, sets: Sequence[EvaluationSet]
) -> tuple[list[Retrieval], list[Classification]]:
    retrievals, classifications = [], []
    for source in sets:
        say(f"evaluate: {source.name} ({source.kind}), {len(source.images):,} images")
        if source.kind == "retrieval":
            retrievals.append(
                measure_retrieval(source, encoder, num_resamples=config.num_resamples, seed=config.seed)
            )  # fmt: skip
        else:
            classifications.append(
                measure_classification(source, encoder, num_resamples=config.num_resamples, seed=config.seed)
            )  # fmt: skip
    return retrievals, classifications


def _report(retrievals: Sequence[Retrieval], classifications: Sequence[Classification]) -> EvaluateReport:
    metrics: dict[str, float | int] = {}
    described: dict[str, dict[str, Any]] = {}
    classes: dict[str, dict[str, dict[str, float]]] = {}
    results: list[Retrieval | Classification] = [*retrievals, *classifications]
    for result in results:
        source = result.source
        described[source.name] = {
            "kind": source.kind,
            "description": source.description,
            "num_images": len(source.images),
            "num_concepts": len({image.concept for image in source.images}),
        }
        for metric, score in result.scores.items():
            metrics |= _flat(f"{source.name}/{metric}", score)
        if isinstance(result, Retrieval):
            described[source.name]["num_texts"] = len(result.items.texts)
        else:
            described[source.name]["num_classes"] = len(source.classes)
            metrics[f"{source.name}/zero_shot/accuracy/majority"] = _rounded(result.majority)
            classes[source.name] = {
                name: {"num_images": int(row.sum()), "accuracy": _rounded(int(row[index]) / int(row.sum()))}
                for index, (name, row) in enumerate(zip(source.classes, result.confusion, strict=True))
                if row.sum()
            }
    return EvaluateReport(metrics=metrics, sets=described, classes=classes)


def _flat(name: str, score: Score) -> dict[str, float | int]:
    return {
        name: _rounded(score.value),
        f"{name}/low": _rounded(score.low),
        f"{name}/high": _rounded(score.high),
        f"{name}/chance": _rounded(score.chance),
    }


def _rounded(value: float) -> float:
    return round(value, 6)


def _read_curve(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def main(params: Params, args: argparse.Namespace) -> None:
    """`align evaluate`."""
    config, paths = params.section(EvaluateConfig), params.section(PathsConfig)
    shards = materialised(paths.shards, params.section(StoreConfig))
    with record_runtime("evaluate", paths.runtime):
        report = evaluate(
            config,
            encoder=Embedder.load(paths.finetuned, paths.tokenizer),
            sets=[*load_sets(paths.evaluation), *shards_test_set(shards, config.max_test_images)],
            curves={stage: paths.reports / stage / "metrics.jsonl" for stage in ("pretrain", "finetune")},
            reports=paths.reports / "evaluation",
        )
    for name, of_set in report.sets.items():
        for metric in ("image_to_text/recall@10", "text_to_image/recall@10", "zero_shot/accuracy", "knn/accuracy"):
            key = f"{name}/{metric}"
            if key in report.metrics:
                value, low, high, chance = (report.metrics[key + part] for part in ("", "/low", "/high", "/chance"))
                say(f"evaluate: {key} {value:.1%} [{low:.1%}, {high:.1%}], chance {chance:.1%} ({of_set['kind']})")
