"""Every section of params.yaml and its class, for code that treats all sections alike, and the JSON Schema of every
parameter, for forms and for programs that check values.

A stage imports the classes of its own sections and never this module, which would make it depend on all of them.

In a schema, type and bounds are those of the section's class, and the description is the comment in params.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from align.config.evaluate import EvaluateConfig
from align.config.filter import FilterConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.infrastructure import ClusterConfig, EngineConfig, HealthConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.model import ModelConfig
from align.config.params import INHERITS, Params, Section, flattened
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


#: Fields that are left out: titles repeat the key, and a discriminator is for readers that generate code.
_LEFT_OUT = frozenset({"title", "discriminator"})


def parameter_schemas(file: Path) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each parameter that an override may name, in the order of params.yaml.

    Args:
        file: params.yaml, whose comments become descriptions.

    Returns:
        `section.key`, and deeper keys such as `model.image_tower.width_coefficient` -> a schema without references.
    """
    sections = YAML().load(file.read_text("utf-8"))
    schemas: dict[str, dict[str, Any]] = {}
    for name, values in sections.items():
        if name not in SECTIONS or not isinstance(values, CommentedMap):
            continue
        whole = SECTIONS[name].model_json_schema()
        resolved = _resolve(whole, whole.get("$defs", {}))
        parent = sections.get(INHERITS.get(name, ""), CommentedMap())
        keys = dict.fromkeys(parent, parent) | dict.fromkeys(values, values)
        for key, source in keys.items():
            for path, schema in _below(key, resolved["properties"].get(key, {}), source, name):
                schemas[f"{name}.{path}"] = schema
    return schemas


def _below(key: str, schema: dict[str, Any], source: CommentedMap, outer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema of a key, and of the keys in its value; one without a description gets that of the key around it."""
    words = _comment(source, key) or outer
    yield key, {**schema, "description": words}
    value = source.get(key)
    if isinstance(value, CommentedMap):
        for inner in value:
            for path, found in _below(inner, _member(schema, inner), value, words):
                yield f"{key}.{path}", found


def _member(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What an object's schema, or that of a choice of objects, says of one of its keys; {}: anything."""
    for one in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if key in one.get("properties", {}):
            return dict(one["properties"][key])
        for pattern, found in one.get("patternProperties", {}).items():
            if re.search(pattern, key):
                return dict(found)
    return {}


def _comment(values: CommentedMap, key: str) -> str:
    """The comment at the end of a key's line; of a mapping that begins on the next line, the one after its colon."""
    tokens = values.ca.items.get(key, ())
    found = [token for token in tokens if token is not None]
    first = found[0][0] if found and isinstance(found[0], list) else found[0] if found else None
    line = first.value.strip().splitlines()[0] if first is not None and first.value.strip() else ""
    return line.removeprefix("#").strip()


def _resolve(node: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with its references replaced by what they name. None of ours names itself."""
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return _resolve(definitions[name], definitions) | _resolve({k: v for k, v in node.items() if k != "$ref"}, {})
    return {key: _resolve(value, definitions) for key, value in node.items() if not _is_left_out(key, value)}


def _is_left_out(key: str, value: object) -> bool:
    # `title` may also be the name of a property, whose value is a schema
    return key == "$defs" or (key in _LEFT_OUT and not (key == "title" and isinstance(value, dict)))
