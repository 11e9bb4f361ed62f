"""Profiles: values that suit one kind of data or run, as differences from params.yaml (`infra/profiles/NAME.yaml`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.config.params import not_yaml
from align.errors import ConfigError
from align.project.installed import installed

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
        values = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not UTF-8, or not a name of a file
        known = ", ".join(profile_names(root)) or "none"
        raise ConfigError(f"--profile {name}: no readable file {file}; profiles in {folder}: {known}") from None
    except YAMLError as error:
        raise ConfigError(f"{file}: {not_yaml(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ConfigError(f"{file}: expected sections at the top level, as in params.yaml")
    return list(_overrides(values))


def _folder(root: Path) -> Path:
    return root / PROFILES if (root / PROFILES).is_dir() else installed(str(PROFILES))


def _overrides(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"  # YAML reads JSON
