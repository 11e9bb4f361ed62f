"""What the files of a project declare about a stage, checked before the stage runs.

dvc.yaml declares the outs of each stage, and code.yaml its code (`align.project.code`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from align.config import Params
from align.config.params import load_yaml
from align.config.paths import require_declared
from align.errors import ConfigError
from align.project.provenance import digest

DVC_FILE = "dvc.yaml"
CODE_FILE = "code.yaml"


def all_outs(root: Path) -> dict[str, tuple[str, ...]]:
    """Stage -> its outs, as dvc.yaml of a folder has them; may be empty.

    Raises:
        ConfigError: the file is not valid YAML.
    """
    stages = read_yaml(root / DVC_FILE).get("stages")
    entries = {str(name): entry for name, entry in (stages if isinstance(stages, dict) else {}).items()}
    outs = {name: entry.get("outs") or () for name, entry in entries.items() if isinstance(entry, dict)}
    # an out with options, such as `cache: false`, is a mapping whose key is the path
    each = {name: (out if isinstance(out, dict) else [out] for out in some) for name, some in outs.items()}
    return {name: tuple(str(path) for paths in some for path in paths) for name, some in each.items()}


def declared_outs(root: Path) -> dict[str, tuple[str, ...]]:
    """`all_outs` without the stage that writes code.yaml."""
    return {name: outs for name, outs in all_outs(root).items() if CODE_FILE not in outs}


def require_stage(stage: str, module: str, params: Params) -> None:
    """Checks that a stage which DVC is about to run in the working directory is what the files there declare.

    DVC keeps what the stage writes under the names that dvc.yaml has.

    Args:
        stage: its name.
        module: of its verb.
        params: the parameters that it gets.

    Raises:
        ConfigError: it writes or reads other paths than dvc.yaml says, or its code is not what code.yaml
            says, and so not what DVC would record.
    """
    root = Path()
    require_declared(params.values.get("paths", {}), declared_outs(root))
    depends = (read_yaml(root / DVC_FILE).get("stages") or {}).get(stage, {}).get("params", ())
    if any(CODE_FILE in each for each in depends) and read_yaml(root / CODE_FILE).get(stage) != digest(module):
        raise ConfigError(
            f"{CODE_FILE}: this is other code of stage {stage} than what it names; `python -m align.project.code` "
            "writes it, and so does `dvc repro` without --single-item"
        )


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a file; empty if there is no such file. Raises ConfigError if it is not valid YAML."""
    try:
        values = load_yaml(file)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    return values if isinstance(values, dict) else {}
