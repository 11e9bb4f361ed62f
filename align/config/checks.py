"""Checks the whole of params before a command starts: every section, and values of sections that contradict each other.

Otherwise a wrong value of a late stage would only show after hours of early ones. A missing section is left to the
command that needs it: files for single commands may have only some sections.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from pydantic import ValidationError

from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import ClusterConfig
from align.config.model import ModelConfig
from align.config.params import Params, S, Section, did_you_mean, wrong_values
from align.config.paths import PathsConfig
from align.config.recipe import FinetuneConfig, PretrainConfig, Recipe
from align.config.release import PromoteConfig
from align.config.sections import SECTIONS
from align.config.shard import ShardConfig
from align.config.validate import ValidateConfig
from align.errors import ConfigError

#: The measures of `align evaluate` for a set of captions, and for a set of classes.
_METRIC = re.compile(
    r"(?P<set>.+)/("
    r"((image_to_text|text_to_image)/(recall@(1|5|10)|mean_recall)|mean_recall)"
    r"|(zero_shot|knn)/accuracy)"
)
#: The set that `align evaluate` makes of the test split.
_TEST = "test"


def require_valid(params: Params, reasons: Collection[str], but: str = "") -> None:
    """Checks every section of `params`, and sections against each other.

    Args:
        params: as `load_params` returns them.
        reasons: the codes of all rules of the filter, each of which needs a band.
        but: a key that the command does not read.

    Raises:
        ConfigError: a value is wrong. The message has the first in the order of params.yaml, and names the others.
    """
    if wrong := {key: line for key, line in wrong_parameters(params, reasons).items() if key != but}:
        (_, first), *others = wrong.items()
        more = f" ({len(others)} more wrong: {', '.join(key for key, _ in others)})" if others else ""
        raise ConfigError(f"{params.source}: {first}{more}")


def wrong_parameters(params: Params, reasons: Collection[str]) -> dict[str, str]:
    """What is wrong, as `require_valid` says it: key (`section.key`) -> one line, in the order of params.yaml."""
    wrong: dict[str, str] = {}
    valid: dict[type[Section], Section] = {}
    for name in params.values:
        cls = SECTIONS.get(name)
        if cls is None:
            wrong[name] = f"unknown section '{name}'{did_you_mean(name, SECTIONS)}"
            continue
        try:
            valid[cls] = cls.model_validate(params.values[name])
        except ValidationError as error:
            wrong |= wrong_values(cls, error)
    for key, line in _contradictions(valid, reasons):
        wrong.setdefault(key, line)
    return wrong


def _contradictions(valid: Mapping[type[Section], Section], reasons: Collection[str]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of values that do not go together; sections that are missing or wrong are left out."""
    model, shard = _get(valid, ModelConfig), _get(valid, ShardConfig)
    pretrain, finetune, paths = _get(valid, PretrainConfig), _get(valid, FinetuneConfig), _get(valid, PathsConfig)
    # A model made elsewhere has a shape of its own, which training checks. Nothing needs the section `model` then.
    elsewhere = bool(finetune and paths and paths.is_made_elsewhere(finetune.start))
    cluster = _get(valid, ClusterConfig)
    for recipe in (pretrain, None if elsewhere else finetune):
        if model and recipe and not elsewhere:
            yield from _picture_sizes(recipe, model, shard)
        if model and cluster and recipe and (line := recipe.against(model, cluster.num_nodes, recipe.num_processes)):
            yield line.partition(" ")[0], line
    if validate := _get(valid, ValidateConfig):
        yield from _bands(validate, reasons)
    if promote := _get(valid, PromoteConfig):
        yield from _metrics(promote, _get(valid, EvaluateConfig))


def _picture_sizes(recipe: Recipe, model: ModelConfig, shard: ShardConfig | None) -> Iterator[tuple[str, str]]:
    try:
        needed = recipe.trained(model).resize_px
    except ConfigError as error:
        yield f"{recipe.section}.image_px", str(error)
        return
    if shard and shard.image_px < needed:
        own = "resize_px" if recipe.resize_px else "image_px" if recipe.image_px else None
        below = f"model.resize_px {needed}" if own is None else f"the {needed} px of {recipe.section}.{own}"
        yield (
            "shard.image_px",
            f"shard.image_px {shard.image_px} is below {below}: the model would train on enlarged pictures; raise the "
            "one or lower the other",
        )


def _bands(validate: ValidateConfig, reasons: Collection[str]) -> Iterator[tuple[str, str]]:
    for reason in validate.dropped_share:
        if reason not in reasons:
            key = f"validate.dropped_share.{reason}"
            yield key, f"{key}: '{reason}' is not a reason of a rule{did_you_mean(reason, reasons)}"


def _metrics(promote: PromoteConfig, evaluate: EvaluateConfig | None) -> Iterator[tuple[str, str]]:
    for metric in promote.metrics:
        match = _METRIC.fullmatch(metric)
        if match is None:
            yield (
                "promote.metrics",
                f"promote.metrics: '{metric}' is measured for no set; expected SET/image_to_text/recall@10, "
                "SET/text_to_image/recall@10, SET/zero_shot/accuracy or another metric of "
                "reports/evaluation/report.json",
            )
        elif match["set"] == _TEST and evaluate and not evaluate.max_test_images:
            yield (
                "promote.metrics",
                f"promote.metrics: '{metric}' is of the set `test`, which evaluate.max_test_images 0 leaves out",
            )


def _get(valid: Mapping[type[Section], Section], cls: type[S]) -> S | None:
    found = valid.get(cls)
    return found if isinstance(found, cls) else None
