"""DVC's repository and settings of a checkout, in this process: each start of `dvc` costs half a CPU second or more."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.errors import DataError, one_line


class DvcError(DataError):
    """DVC refuses; the message is one line."""


@contextmanager
def dvc_repository(root: Path, what: str) -> Iterator[Any]:
    """DVC's repository of a checkout, a `dvc.repo.Repo`, which prints nothing. Imports DVC.

    The working directory may be another one: then DVC's own words name paths from there.

    Args:
        root: of the checkout.
        what: is done with it, for the message, such as `status`.

    Raises:
        DvcError: DVC raises an error in the block, such as while another DVC command is at work there.
    """
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]  # DVC ships no types
    from dvc.repo import Repo  # type: ignore[import-untyped]  # likewise

    for name in ("dvc", "dvc_data"):  # and no bars of progress: errors are raised, and the status says what is missing
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo(str(root)) as repo:
            yield repo
    except (DvcException, OSError) as error:
        raise DvcError(f"dvc {what} in {root}: {one_line(error)}") from None


@contextmanager
def locked_repository(root: Path, what: str) -> Iterator[Any]:
    """As `dvc_repository`, but under DVC's lock, like its commands: it reads dvc.yaml and dvc.lock only once."""
    with dvc_repository(root, what) as repo:
        from dvc.repo import lock_repo

        with lock_repo(repo):
            yield repo


def settings(root: Path) -> dict[str, Any]:
    """`cache`: the folder of the cache, absolute; `remotes`: name -> URL; `remote`: the name of the default one, or
    None. Raises DataError if a file of settings cannot be read.
    """
    config = _config(root)
    cache = config["cache"].get("dir") or root.absolute() / ".dvc/cache"
    remotes = {name: str(values["url"]) for name, values in sorted(config["remote"].items())}
    return {"cache": str(Path(cache).resolve()), "remotes": remotes, "remote": config["core"].get("remote")}


def share_cache(root: Path, other: Path) -> None:
    """Gives another checkout the cache of this one, in the settings that git does not track. Raises DataError if a file
    of settings cannot be read.
    """
    with _config(other).edit("local") as local:
        local["cache"]["dir"] = settings(root)["cache"]


def _config(root: Path) -> Any:
    from dvc.config import Config, ConfigError  # type: ignore[import-untyped]  # likewise

    try:
        return Config(str(root.absolute() / ".dvc"))
    except ConfigError as error:
        raise DataError(f"DVC's settings in {root}: {one_line(error)}") from None
