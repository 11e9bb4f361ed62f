"""Every section of params.yaml and its class, for code that treats all sections alike, such as `align register`.

A stage imports the classes of its own sections and never this module, which would make it depend on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.config.cluster import ClusterConfig
from align.config.download import DownloadConfig
from align.config.embed import EmbedConfig
from align.config.engine import EngineConfig
from align.config.evaluate import EvaluateConfig
from align.config.filter import FilterConfig
from align.config.finetune import FinetuneConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.health import HealthConfig
from align.config.index import IndexConfig
from align.config.ingest import IngestConfig
from align.config.model import ModelConfig
from align.config.params import Section
from align.config.paths import PathsConfig
from align.config.pretrain import PretrainConfig
from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.config.retrain import RetrainConfig
from align.config.search import SearchConfig
from align.config.serve import ServeConfig
from align.config.shard import ShardConfig
from align.config.store import StoreConfig
from align.config.validate import ValidateConfig

#: Name in params.yaml -> class.
SECTIONS: dict[str, type[Section]] = {
    cls.section: cls
    for cls in (
        PathsConfig, EngineConfig, StoreConfig, HealthConfig, ClusterConfig, IngestConfig, DownloadConfig, FilterConfig,
        ValidateConfig, ShardConfig, FitTokenizerConfig, ModelConfig, PretrainConfig, FinetuneConfig, EvaluateConfig,
        IndexConfig, SearchConfig, ServeConfig, EmbedConfig, RegisterConfig, PromoteConfig, RetrainConfig,
    )
}  # fmt: skip


def changing_bytes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `values` (name -> content) that can change the bytes of a result.

    A section without a class is left out: nothing reads it.
    """
    return {name: content for name, content in values.items() if name in SECTIONS and SECTIONS[name].changes_bytes}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
