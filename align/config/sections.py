"""Every section of params.yaml and its class, for code that treats all sections alike.

A stage imports the classes of its own sections and never this module, which would make it depend on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.config.evaluate import EvaluateConfig
from align.config.filter import FilterConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.infrastructure import ClusterConfig, EngineConfig, HealthConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.model import ModelConfig
from align.config.params import Params, Section, flattened
from align.config.paths import MAKE_PRETRAINED, PathsConfig
from align.config.recipe import FinetuneConfig, PretrainConfig
from align.config.release import PromoteConfig, RegisterConfig
from align.config.search import IndexConfig, SearchConfig
from align.config.serve import ServeConfig
from align.config.shard import ShardConfig
from align.config.validate import ValidateConfig

#: Name in params.yaml -> class.
SECTIONS: dict[str, type[Section]] = {
    cls.section: cls
    for cls in (
        PathsConfig, EngineConfig, StoreConfig, HealthConfig, ClusterConfig, IngestConfig, DownloadConfig, FilterConfig,
        ValidateConfig, ShardConfig, FitTokenizerConfig, ModelConfig, PretrainConfig, FinetuneConfig, EvaluateConfig,
        IndexConfig, SearchConfig, ServeConfig, RegisterConfig, PromoteConfig,
    )
}  # fmt: skip


def changing_bytes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `values` (name -> content) that can change the bytes of a result.

    A section without a class is left out: nothing reads it.
    """
    return {name: content for name, content in values.items() if name in SECTIONS and SECTIONS[name].changes_bytes}


def known_params(params: Params) -> dict[str, Any]:
    """`section.key` -> value of what makes a run's result, as far as it is known before the model is made.

    If fine-tuning begins with a model from elsewhere, that model's folder has the shape.
    """
    values = changing_bytes(params.values)
    if params.section(PathsConfig).is_made_elsewhere(params.section(FinetuneConfig).start):
        values = {name: each for name, each in values.items() if name not in (*MAKE_PRETRAINED, ModelConfig.section)}
    return flattened(values)
