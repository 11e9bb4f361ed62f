"""The numbers of the evaluation report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from align.display.report import Report
from align.display.shares import percent, points
from align.evaluate.measure import Classification, Retrieval
from align.evaluate.protocols.recall import Score

#: Pictures left out that the report names, of each set.
_MAX_FAULTS = 100
#: Metrics that are said in a line each, as patterns.
_SAID = (
    r"(image_to_text|text_to_image)/recall@10",
    r"cxc/(sts|sis|sits)",
    r"(zero_shot|knn|frozen|fine_tuning)/accuracy",
)


class EvaluateReport(Report):
    """The metrics, and what was measured.

    Attributes:
        evaluation_digest: names the sets and the code that measured; see `align.formats.measured_sets`.
        model: of one that was given: `folder`, `digest`, `library` of one of other people's, and, where its config.json
            says them, `stage` and `step`; empty: the fine-tuned model.
        sets: name -> kind, description, counts and digest; of a suite's set, its tasks and their settings; with
            pictures that could not be shown to the model, also `num_left_out` and some, `left_out`: key -> why.
        classes: set -> class -> number of query images and zero-shot accuracy.
        fine_tuning: set -> `recipe`, `classes` (class -> accuracy), and `minus_knn`, the paired difference to the
            nearest neighbour's accuracy with its 95 % interval.
    """

    evaluation_digest: str
    model: dict[str, str] = Field(default_factory=dict)
    sets: dict[str, dict[str, Any]]
    classes: dict[str, dict[str, dict[str, float]]]
    fine_tuning: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def summary(self) -> Iterator[str]:
        """One line per set and main metric, with interval and chance."""
        for name, of_set in self.sets.items():
            if "num_left_out" in of_set:
                key, why = next(iter(of_set["left_out"].items()))
                yield f"warning: {name}: {of_set['num_left_out']:,} picture(s) or rows left out; {key}: {why}"
            for metric in _SAID:
                for key in [one for one in self.metrics if re.fullmatch(f"{re.escape(name)}/{metric}", one)]:
                    parts = (key, f"{key}/low", f"{key}/high", f"{key}/chance")
                    value, low, high, chance = (percent(self.metrics[part]) for part in parts)
                    yield f"{key} {value} [{low}, {high}], chance {chance} ({of_set['kind']})"
            if one := self.fine_tuning.get(name, {}).get("minus_knn"):
                more, low, high = (points(one[part]) for part in ("value", "low", "high"))
                yield f"{name}/fine_tuning minus knn: {more} points [{low}, {high}], same pictures"


def make_report(
    results: Sequence[Retrieval | Classification],
    set_digests: Mapping[str, str],
    evaluation_digest: str,
    model: Mapping[str, str],
) -> EvaluateReport:
    """Metrics `SET/METRIC` in the results' order, each with `/low`, `/high` and `/chance`, rounded to six digits."""
    metrics: dict[str, float | int] = {}
    sets: dict[str, dict[str, Any]] = {}
    classes: dict[str, dict[str, dict[str, float]]] = {}
    tuned: dict[str, dict[str, Any]] = {}
    for result in results:
        source = result.source
        sets[source.name] = {
            "kind": source.kind,
            "description": source.description,
            "digest": set_digests[source.name],
            "num_images": len(source.images),
            "num_concepts": len({image.concept for image in source.images}),
        }
        if source.asked is not None:
            settings = {task: of.model_dump(mode="json") for task, of in source.asked.settings.items()}
            sets[source.name] |= {"tasks": list(source.asked.tasks), "settings": settings}
        if result.faults:
            some = dict(list(result.faults.items())[:_MAX_FAULTS])
            sets[source.name] |= {"num_left_out": len(result.faults), "left_out": some}
        for metric, score in result.scores.items():
            metrics |= _flat(f"{source.name}/{metric}", score)
        if isinstance(result, Retrieval):
            sets[source.name]["num_texts"] = len(result.items.texts)
        else:
            sets[source.name]["num_classes"] = len(source.classes)
            metrics[f"{source.name}/zero_shot/accuracy/majority"] = _rounded(result.majority)
            classes[source.name] = _classes(result)
            if result.tuned is not None:
                right = class_accuracy(result, result.tuned.right)
                rounded = {name: _rounded(value) for name, value in right.items()}
                tuned[source.name] = {**result.tuned.described(), "classes": rounded}
    return EvaluateReport(
        metrics=metrics,
        evaluation_digest=evaluation_digest,
        model=dict(model),
        sets=sets,
        classes=classes,
        fine_tuning=tuned,
    )


def class_accuracy(result: Classification, right: NDArray[np.float64]) -> dict[str, float]:
    """Class -> the mean of `right`, (num_queries,), over its query images; of classes that have any."""
    labels = np.asarray(result.labels)
    return {
        name: float(right[labels == index].mean())
        for index, name in enumerate(result.source.classes)
        if (labels == index).any()
    }


def _classes(result: Classification) -> dict[str, dict[str, float]]:
    """The classes that have query images."""
    return {
        name: {"num_images": int(row.sum()), "accuracy": _rounded(int(row[index]) / int(row.sum()))}
        for index, (name, row) in enumerate(zip(result.source.classes, result.confusion, strict=True))
        if row.sum()
    }


def _flat(name: str, score: Score) -> dict[str, float | int]:
    values = {"": score.value, "/low": score.low, "/high": score.high, "/chance": score.chance}
    return {f"{name}{part}": _rounded(value) for part, value in values.items()}


def _rounded(value: float) -> float:
    return round(value, 6)
