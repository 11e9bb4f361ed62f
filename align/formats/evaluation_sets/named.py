"""The evaluation sets that `paths.evaluation` names: a folder of sets in our own format, or a suite.

One list for everybody: what `align evaluate` measures is what rule I5 keeps out of training, and what the gate looks
for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from align.config.suite import LEARNED, SuiteSet, is_suite, read_suite
from align.errors import ConfigError, DataError
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.align_tar import load_set, load_sets
from align.formats.evaluation_sets.files import joined, masked
from align.interfaces.store import Files


def named_sets(evaluation: Path, files: Files | None) -> list[EvaluationSet]:
    """Every set, in the order of the suite or of their names.

    Args:
        evaluation: paths.evaluation.
        files: reads what a suite names; None: there is only a folder.

    Raises ConfigError if the suite is missing or wrong; else as the readers of its sets.
    """
    if not is_suite(evaluation):
        return load_sets(evaluation)
    if files is None:
        raise ConfigError(f"{evaluation}: a suite, where only a folder of evaluation sets is read")
    return [_read(wanted, files) for wanted in read_suite(evaluation)]


def _read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """A reader is imported only if a suite has its format: importing webdataset takes a second."""
    match wanted.format:
        case "align":
            return masked(_own(wanted, files), files)
        case "webdataset":
            from align.formats.evaluation_sets.webdataset_tars import read
        case "coco" | "karpathy" | "retrieval_txt" | "multi30k":
            from align.formats.evaluation_sets.captions import read
        case "folder":
            from align.formats.evaluation_sets.folder import read
        case "table":
            from align.formats.evaluation_sets.table import read
        case "parquet":
            from align.formats.evaluation_sets.hub_parquet import read
    return masked(read(wanted, files), files)


def _own(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """A set in our own format: NAME.json, or the folder that has it."""
    path = wanted.path if wanted.path.endswith(".json") else joined(wanted.path, f"{wanted.name}.json")
    one = load_set(path, files if "://" in path else None)
    fits = ("retrieval",) if one.kind == "retrieval" else ("zero_shot", *LEARNED)
    if not set(wanted.tasks) <= set(fits):
        raise DataError(f"evaluation set {wanted.name}: it is of kind {one.kind}; tasks: {', '.join(fits)}")
    if one.name != wanted.name:
        raise DataError(f"evaluation set {wanted.name}: {path} names itself {one.name}; give it this name in the suite")
    one = replace(one, asked=wanted)
    if one.kind == "classification" and not wanted.learns:
        return one.select([position for position, image in enumerate(one.images) if image.split == "query"])
    return one
