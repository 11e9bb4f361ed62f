"""The numbers of the evaluation report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from align.evaluate.measure import Classification, Retrieval
from align.evaluate.protocols.recall import Score
from align.report import Report

#: Pictures left out that the report names, of each set.
_MAX_FAULTS = 100


class EvaluateReport(Report):
    """The metrics, and what was measured.

    Attributes:
        evaluation_digest: names the sets and the code that measured; see `align.formats.measured_sets`.
        sets: name -> kind, description, counts and digest; with pictures that could not be shown to the model, also
            `num_left_out` and some of them, `left_out`: key -> why.
        classes: set -> class -> number of query images and zero-shot accuracy.
    """

    evaluation_digest: str
    sets: dict[str, dict[str, Any]]
    classes: dict[str, dict[str, dict[str, float]]]

    def summary(self) -> Iterator[str]:
        """One line per set and main metric, with interval and chance."""
        for name, of_set in self.sets.items():
            if "num_left_out" in of_set:
                key, why = next(iter(of_set["left_out"].items()))
                yield f"warning: {name}: {of_set['num_left_out']:,} picture(s) or rows left out; {key}: {why}"
            for metric in ("image_to_text/recall@10", "text_to_image/recall@10", "zero_shot/accuracy", "knn/accuracy"):
                key = f"{name}/{metric}"
                if key in self.metrics:
                    value, low, high, chance = (self.metrics[key + part] for part in ("", "/low", "/high", "/chance"))
                    yield f"{key} {value:.1%} [{low:.1%}, {high:.1%}], chance {chance:.1%} ({of_set['kind']})"


def make_report(
    retrievals: Sequence[Retrieval],
    classifications: Sequence[Classification],
    set_digests: Mapping[str, str],
    evaluation_digest: str,
) -> EvaluateReport:
    """Metrics `SET/METRIC`, each with `/low`, `/high` and `/chance`, rounded to six digits."""
    metrics: dict[str, float | int] = {}
    sets: dict[str, dict[str, Any]] = {}
    classes: dict[str, dict[str, dict[str, float]]] = {}
    results: list[Retrieval | Classification] = [*retrievals, *classifications]
    for result in results:
        source = result.source
        sets[source.name] = {
            "kind": source.kind,
            "description": source.description,
            "digest": set_digests[source.name],
            "num_images": len(source.images),
            "num_concepts": len({image.concept for image in source.images}),
        }
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
    return EvaluateReport(metrics=metrics, evaluation_digest=evaluation_digest, sets=sets, classes=classes)


def _classes(result: Classification) -> dict[str, dict[str, float]]:
    """The classes that have query images."""
    return {
        name: {"num_images": int(row.sum()), "accuracy": _rounded(int(row[index]) / int(row.sum()))}
        for index, (name, row) in enumerate(zip(result.source.classes, result.confusion, strict=True))
        if row.sum()
    }


def _flat(name: str, score: Score) -> dict[str, float | int]:
    return {
        name: _rounded(score.value),
        f"{name}/low": _rounded(score.low),
        f"{name}/high": _rounded(score.high),
        f"{name}/chance": _rounded(score.chance),
    }


def _rounded(value: float) -> float:
    return round(value, 6)
