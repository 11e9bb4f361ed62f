"""Writes values into a params file, and keeps its comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.config.params import load_params


def write_params(file: Path, overrides: Mapping[str, Any]) -> None:
    """Changes values in a params file and keeps its comments.

    Args:
        file: is overwritten in place.
        overrides: `section.key` -> value. A key that the section only inherits is added to it.

    Raises:
        ConfigError: an override names an unknown parameter.
    """
    if not overrides:
        return
    load_params(file, [f"{key}=null" for key in overrides])  # raises if a key is unknown
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    values = yaml.load(file.read_text("utf-8"))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(values, stream)
