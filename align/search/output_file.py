"""The file that a command of search writes: its name is checked before the work, which may take hours."""

from __future__ import annotations

from pathlib import Path

from align.durable.files import make_parent
from align.errors import ConfigError, DataError
from align.services.dvc.outs import require_no_out


def require_output_file(option: str, path: Path, ending: str) -> None:
    """Refuses a wrong or dangerous name, and makes the folder around the file.

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
