"""Reads params.yaml (as YAML 1.2), applies `--set` overrides and profiles, fills in what is inherited, validates by
section, and writes values into such a file.

A profile (`infra/profiles/NAME.yaml`) has values that suit one kind of data or run, as differences from params.yaml.

YAML 1.2 through ruamel, since PyYAML reads `1e-3` as a string where DVC reads a float.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from align.errors import LOGIN, ConfigError, first_line
from align.project.installed import installed

#: Read from the working directory; outside a checkout, the copy in the installed package is used.
PARAMS_FILE = "params.yaml"

#: Of a text of YAML; the largest of ours, a dvc.lock, has 30,000 characters, 2,000 values and depth 6.
_MAX_CHARACTERS, _MAX_VALUES, _MAX_DEPTH, _MAX_DIGITS = 1 << 20, 100_000, 50, 40
#: Section -> the section from which it inherits keys that it does not set itself. A stage that reads the first depends
#: on both.
INHERITS = {"finetune": "pretrain"}
#: Pydantic's kinds of errors -> what to expect, in YAML's words.
_WHY = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected a text; quote a number or a word such as yes",
    "tuple_type": "expected a list, such as [a, b]",
    "list_type": "expected a list, such as [a, b]",
    "model_type": "expected keys with values, such as {key: value}",
}
#: What Python makes of a byte of an argument that is not UTF-8.
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


class Strict(BaseModel):
    """Frozen values that people, or files of ours, state: none is converted, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Section(Strict):
    """One section of params.yaml.

    Section, module and stage share one name: `Params.section(FilterConfig)` reads the values under `filter`.

    Attributes:
        section: its key in params.yaml.
        changes_bytes: False if its values change where and how fast, never what. Such a section is a param of no stage
            in dvc.yaml, and part of no key: neither a registered run's nor a training run's.
    """

    section: ClassVar[str]
    changes_bytes: ClassVar[bool] = True


def in_order(band: tuple[float, float]) -> tuple[float, float]:
    """The band [lowest, highest]. Raises ValueError if its values are in the wrong order."""
    if band[0] > band[1]:
        raise ValueError("the lowest value comes first")
    return band


S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Params:
    """The values of params.yaml after overrides, not yet validated.

    Attributes:
        values: section name -> key -> value; inherited ones included.
        source: their file, for error messages.
    """

    values: dict[str, Any]
    source: Path

    def section(self, cls: type[S]) -> S:
        """Validates one section.

        Raises:
            ConfigError: the section is missing, or a key is unknown, missing or ill-typed; the message names the key.
        """
        if cls.section not in self.values:
            raise ConfigError(f"{self.source}: section '{cls.section}' is missing")
        try:
            return cls.model_validate(self.values[cls.section])
        except ValidationError as error:
            raise ConfigError(f"{self.source}: {next(iter(wrong_values(cls, error).values()))}") from None


def wrong_values(cls: type[Section], error: ValidationError) -> dict[str, str]:
    """What is wrong with a section: key (`section.key`) -> one line."""
    lines: dict[str, str] = {}
    for one in error.errors():
        key = ".".join([cls.section, *(str(part) for part in one["loc"])])
        if one["type"] == "extra_forbidden":
            lines[key] = f"unknown parameter '{key}'{did_you_mean(key.rpartition('.')[2], cls.model_fields)}"
        elif one["type"] == "missing":
            lines[key] = f"parameter '{key}' is missing"
        elif len(one["loc"]) == 0 and one["type"] == "value_error":  # of several values, which it names
            lines[key] = f"section '{key}': {one['msg'].removeprefix('Value error, ')}"
        elif not any(key.startswith(inner) or inner.startswith(f"{key}.") for inner in lines):
            why = _WHY.get(one["type"], one["msg"].removeprefix("Value error, "))
            lines[key] = f"parameter '{key}' = {one['input']!r:.200}: {why}"
    return lines


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, with the known words that are nearest to this one; empty if none is near.

    A name with dots (`section.key`) is near to all names with the same last part.
    """
    names, last = list(known), word.rpartition(".")[2]
    lasts = [name.rpartition(".")[2] for name in names]
    near = [name for name in names if name.rpartition(".")[2] == last]
    near = near or get_close_matches(word, names, n=1)
    near = near or [names[lasts.index(each)] for each in get_close_matches(last, lasts, n=1)]
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def load_params(path: Path | None = None, overrides: Iterable[str] = ()) -> Params:
    """Reads a params file and applies overrides of the form `section.key=value` (the value is YAML).

    Args:
        path: the file; None means ./params.yaml, or the packaged copy if there is none.
        overrides: `a.b=v`; the section must have or inherit the key, so that a misspelt key is an error. A section also
            inherits overridden values, unless it sets its own, and `finetune.from` follows an overridden
            `paths.pretrained` where the file gives both the same folder.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, an override is malformed or names an unknown key, or a
            value is an address with a login or a signature in it.
    """
    here = Path(PARAMS_FILE)
    source = path or (here if here.exists() else installed(PARAMS_FILE))
    try:
        values = load_yaml(source)
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such params file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: unreadable: {first_line(error)}") from None
    except YAMLError as error:
        raise ConfigError(f"{source}: {not_yaml(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected sections at the top level")
    overrides = list(overrides)
    follows = _starts_with_pretrained(values) and not any(one.startswith("finetune.from=") for one in overrides)
    for override in overrides:
        _apply(values, override, source)
    if follows:
        values["finetune"]["from"] = values["paths"]["pretrained"]
    for name in INHERITS:
        if isinstance(values.get(name), dict):
            values[name] = _inherited(values, name) | values[name]
    if key := login_in(values):
        raise ConfigError(
            f"{source}: parameter '{key}' holds a login in its address, or a signature: parameters are "
            "recorded; put logins into the environment (infra/env.example)"
        )
    return Params(values=values, source=source)


def parse_yaml(text: str) -> Any:
    """Parses a text of YAML 1.2. Returns a new object each time, although the text is parsed once in a process.

    Texts come from strangers, too, so they are bounded: length, depth, values with each alias written out, digits.

    Raises:
        YAMLError: it is not YAML, or beyond a bound.
    """
    return deepcopy(_parsed(text))


def load_yaml(path: Path) -> Any:
    """Reads a file as `parse_yaml` does. Raises OSError and UnicodeDecodeError, too."""
    with path.open(encoding="utf-8") as file:
        return parse_yaml(file.read(_MAX_CHARACTERS + 1))


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    if len(text) > _MAX_CHARACTERS:
        raise YAMLError(f"longer than {_MAX_CHARACTERS:,} characters")
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = _MAX_DEPTH
    yaml.Composer = _Bounded
    try:
        return yaml.load(text)
    except YAMLError:
        raise
    except Exception as error:  # noqa: BLE001  # a date such as 2026-99-99 raises what Python's class does
        raise YAMLError(first_line(error)) from None


class _Bounded(Composer):
    """Refuses a document whose aliases stand for too much, or with a number of too many digits, before it is built."""

    def compose_document(self) -> Any:
        """The document's root."""
        root, count = super().compose_document(), 0
        left = [root]
        while left:
            node, count = left.pop(), count + 1
            if count > _MAX_VALUES:
                raise YAMLError(f"more than {_MAX_VALUES:,} values, with each alias written out")
            if isinstance(node, ScalarNode):
                if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_DIGITS:
                    raise YAMLError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} digits")
                if _HALF_SURROGATE.search(node.value):  # "\\ud800", which no file can hold
                    raise YAMLError(f"line {node.start_mark.line + 1}: half of a character: {node.value[:80]!a}")
            elif isinstance(node, MappingNode):
                left += (each for pair in node.value for each in pair)
            else:
                left += node.value
        return root


def chosen_values(params: Params, overrides: Iterable[str]) -> dict[str, Any]:
    """The values that overrides have set: `section.key` -> its value, as YAML reads it.

    Args:
        params: read with these overrides.
        overrides: `section.key=value`.
    """
    chosen: dict[str, Any] = {}
    for override in overrides:
        key = override.partition("=")[0]
        node: Any = params.values
        for part in key.split("."):
            node = node[part]
        chosen[key] = node
    return chosen


def _starts_with_pretrained(values: Mapping[str, Any]) -> bool:
    """Whether the file lets fine-tuning start from the folder that `align pretrain` writes."""
    finetune, paths = values.get("finetune"), values.get("paths")
    if not isinstance(finetune, dict) or not isinstance(paths, dict):
        return False
    start = finetune.get("from")
    return start is not None and start == paths.get("pretrained")


def not_yaml(error: YAMLError) -> str:
    """Why a text is not YAML, and in which line, on one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    return f"line {mark.line + 1}: not valid YAML: {problem}"


def login_in(value: Any, key: str = "") -> str | None:
    """The key (`section.key`) of the first text whose address has a login or a signature, see `LOGIN`; or None."""
    if isinstance(value, str):
        return key if re.search(LOGIN, value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (login_in(item, f"{key}.{name}".lstrip(".")) for name, item in items)
    return next((name for name in found if name is not None), None)


def _inherited(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The keys that section `name` gets from another one; empty if it inherits nothing."""
    parent = values.get(INHERITS.get(name, ""))
    return parent if isinstance(parent, dict) else {}


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key that an override may name: `section.key`, and deeper ones."""
    for name, value in values.items():
        if prefix:
            yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(_inherited(dict(values), name) | value if not prefix else value, f"{prefix}{name}.")


def _apply(values: dict[str, Any], override: str, source: Path) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) < 2:
        near = "" if key in _keys(values) else did_you_mean(key, _keys(values))
        why = f": '{key}' is a section" if key in values else "" if equals else ": no `=` in it"
        raise ConfigError(f"--set {override:.200}{why}: expected section.key=value{near if key not in values else ''}")
    unknown = f"--set {override:.200}: unknown parameter '{key}' (not in {source})"
    node = values
    for part in parts[:-1]:
        child = node.get(part)
        if not isinstance(child, dict):
            raise ConfigError(f"{unknown}{did_you_mean(key, _keys(values))}")
        node = child
    if parts[-1] not in node and parts[-1] not in _inherited(values, ".".join(parts[:-1])):
        raise ConfigError(f"{unknown}{did_you_mean(key, _keys(values))}")
    if _HALF_SURROGATE.search(text):
        raise ConfigError(f"--set {override:.200}: the value is not UTF-8; rename a file or folder of such a name")
    try:
        node[parts[-1]] = parse_yaml(text) if text else None
    except YAMLError:
        raise ConfigError(f"--set {override:.200}: the value is not valid YAML") from None


#: Read from the working directory; outside a checkout, those that came with the package are used. `--profile` also
#: takes the path of a file that is elsewhere.
PROFILES = Path("infra/profiles")
#: The name for params.yaml as it is: no file has this name.
DEMO = "demo"
_HERE = Path()


def profile_names(root: Path = _HERE) -> list[str]:
    """The profiles of a checkout, or those of the package."""
    return sorted(path.stem for path in _folder(root).glob("*.yaml"))


def profile_overrides(name: str | None, root: Path = _HERE) -> list[str]:
    """A profile's values as overrides (`section.key=value`), which `load_params` applies and checks.

    Args:
        name: of a file in PROFILES, or a path that ends in .yaml; None, or the demo: no profile.
        root: the checkout whose profiles are meant.

    Raises:
        ConfigError: there is no such profile, or it is not a YAML mapping of sections.
    """
    if name is None or name == DEMO:
        return []
    folder = _folder(root)
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        values = load_yaml(file)
    except (OSError, ValueError):  # not UTF-8, or not a name of a file
        known = ", ".join(profile_names(root)) or "none"
        raise ConfigError(f"--profile {name}: no readable file {file}; profiles in {folder}: {known}") from None
    except YAMLError as error:
        raise ConfigError(f"{file}: {not_yaml(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ConfigError(f"{file}: expected sections at the top level, as in params.yaml")
    return [f"{key}={json.dumps(value)}" for key, value in flattened(values).items()]  # YAML reads JSON


def _folder(root: Path) -> Path:
    return root / PROFILES if (root / PROFILES).is_dir() else installed(str(PROFILES))


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


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
