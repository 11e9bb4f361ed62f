"""Checks what dvc.yaml in the working directory says of an output before a command writes there.

An out of DVC must be made with the values of params.yaml: dvc.lock would state these values, and DVC's run cache would
give the out to everybody who asks for them. `require_stated_values` sees to that before a command writes. What a
command made outside of DVC `dvc commit --force STAGE` keeps; `dvc repro` removes an out that it does not know, without
asking and without keeping it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from align.config.params import PARAMS_FILE, Params, load_params, parse_yaml
from align.durable.files import make_parent
from align.errors import ConfigError, DataError
from align.project.declared import DVC_FILE, all_outs
from align.services.dvc.repository import settings

_PIPELINE = Path(DVC_FILE)
_REFERENCE = re.compile(r"\$\{\s*([\w.]+)\s*\}")


def is_run_by_dvc() -> bool:
    """Whether DVC has started this command as a stage: then DVC knows its command line, and records its outs."""
    return bool(os.environ.get("DVC_STAGE"))


def is_tracked() -> bool:
    """Whether the working directory belongs to a DVC repository."""
    here = Path.cwd()
    return any((folder / ".dvc").is_dir() for folder in (here, *here.parents))


def stage_of(path: Path) -> str | None:
    """The stage of dvc.yaml here that has this path as an out, or around or in an out; None: there is none. Raises
    ConfigError if dvc.yaml or params.yaml is not what DVC reads.
    """
    if not (_PIPELINE.is_file() and Path(PARAMS_FILE).is_file()):
        return None
    real = path.resolve()
    for stage, out in _outs(load_params(Path(PARAMS_FILE)).values):
        other = Path(out).resolve()
        if real.is_relative_to(other) or other.is_relative_to(real):
            return stage
    return None


def require_no_out(option: str, path: Path) -> None:
    """Refuses to write by hand where a stage of dvc.yaml writes: DVC removes its outs before it runs the stage.

    Raises ConfigError if the path, which the option names, is an out, lies in one, or around one.
    """
    if (stage := stage_of(path)) is not None:
        raise ConfigError(
            f"{option} {path}: stage {stage} of {_PIPELINE} writes there, and `dvc repro` removes what is there before"
            "; choose another place"
        )


def require_output_file(option: str, path: Path, ending: str) -> None:
    """Refuses a wrong or dangerous name before the work, which may take hours; makes the folder around the file.

    Args:
        option: as it was typed, for the message.
        path: the file; replaced if it exists.
        ending: of its name, such as `.html`.

    Raises:
        ConfigError: the name has another ending, or a stage of dvc.yaml writes there.
        DataError: it is a folder, or the folder around it cannot be made.
    """
    if path.is_dir():
        raise DataError(f"{option} {path}: is a folder; give the name of a file in it, such as {path / f'out{ending}'}")
    if path.suffix.lower() != ending:
        raise ConfigError(f"{option} {path}: what is written there is {ending[1:]}; give a name that ends in {ending}")
    require_no_out(option, path)
    make_parent(path)


def require_stated_values(params: Params, keys: Iterable[str], outs: Mapping[str, Path]) -> None:
    """Refuses to write an out of DVC with values that ./params.yaml does not state. DVC itself may do so.

    Args:
        params: of the command.
        keys: what can change the bytes: sections, or single parameters (`paths.archive`).
        outs: name of a path in section `paths` -> what the command writes there.

    Raises:
        ConfigError: a value differs; the message names it, and what to do.
    """
    if is_run_by_dvc():
        return
    written = [path for path in outs.values() if stage_of(path) is not None]
    other = overridden(params, keys) if written else []
    if other:
        elsewhere = " ".join(f"--set paths.{name}=trial/{name}" for name in outs)
        raise ConfigError(
            f"{written[0]}: is an out of {_PIPELINE}, so it is made with the values of {PARAMS_FILE} only, and these "
            f"differ: {', '.join(other)}; put them into {PARAMS_FILE} and repeat the command, or write elsewhere: "
            f"{elsewhere}"
        )


def overridden(params: Params, keys: Iterable[str]) -> list[str]:
    """The parameters (`section.key`), of sections or single ones, whose values differ from those of ./params.yaml."""
    stated = load_params(Path(PARAMS_FILE)).values
    found = []
    for key in keys:
        section, _, name = key.partition(".")
        one, other = (values.get(section) or {} for values in (params.values, stated))
        for each in [name] if name else sorted(one.keys() | other.keys()):
            if (each in one, one.get(each)) != (each in other, other.get(each)):
                found.append(f"{section}.{each}")
    return found


def _outs(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(stage, path) of every out in dvc.yaml, `${section.key}` filled in; what cannot be filled in is no path here."""
    for stage, paths in all_outs(Path()).items():
        for path in paths:
            if all(_value(values, key) is not None for key in _REFERENCE.findall(path)):
                yield stage, _REFERENCE.sub(lambda found: str(_value(values, found[1])), path)


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def linked(out: Path, folder: Path) -> Path:
    """The folder that an out was when DVC last recorded it: links into DVC's cache, as DVC removes it before its stage.

    The folder is new; it stays absent where dvc.lock or the cache has the out no more.
    """
    lock = Path("dvc.lock")
    stages = (parse_yaml(lock.read_text(encoding="utf-8")) or {}).get("stages", {}) if lock.is_file() else {}
    outs = [one for stage in stages.values() for one in stage.get("outs", ()) if Path(one["path"]) == out]
    if outs and outs[0].get("md5"):
        cache = Path(settings(Path())["cache"])
        listing = _place(cache, outs[0]["md5"])
        files = json.loads(listing.read_bytes()) if listing.is_file() else []
        if files and all(_place(cache, file["md5"]).is_file() for file in files):
            for file in files:
                path = folder / file["relpath"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(_place(cache, file["md5"]))
    return folder


def _place(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]
