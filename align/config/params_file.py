"""Writes values into a params file, and keeps its comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from align.config.params import load_params
from align.errors import ConfigError


class _Representer(RoundTripRepresenter):
    """Writes null for a null value: an empty value looks like one that somebody forgot."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def editor() -> YAML:
    """A reader and writer that leaves comments and quotes as they are, and long lines in one piece."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = 4096
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


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
    if odd := [key for key in overrides if "=" in key]:  # which the next line would read as a value
        raise ConfigError(f"'{odd[0]}' is no name of a parameter; expected section.key")
    load_params(file, [f"{key}=null" for key in overrides])  # raises if a key is unknown
    yaml = editor()
    values = yaml.load(file.read_text("utf-8"))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        if last in node:
            node[last] = _in_the_style_of(node[last], value)
        else:
            node.insert(0, last, value)  # not at the end, where a comment on the next section may be
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(values, stream)


def _in_the_style_of(old: Any, new: Any) -> Any:
    """A list or mapping on one line, unless the old value was written over several."""
    if not isinstance(new, (list, dict)):
        return new
    styled = CommentedSeq(new) if isinstance(new, list) else CommentedMap(new)
    if not isinstance(old, (CommentedSeq, CommentedMap)) or old.fa.flow_style():
        styled.fa.set_flow_style()
    return styled
