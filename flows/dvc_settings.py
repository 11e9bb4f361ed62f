"""`python -m flows.dvc_settings`: DVC's settings of the working directory, a line of JSON.

Reads them as DVC does, without starting it: `dvc config` imports all of DVC first, which takes four times as long.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from align.errors import DataError
from flows.log import one_line


def read_settings(root: Path) -> dict[str, Any]:
    """`cache`: the folder of the cache, absolute; `remotes`: name -> URL.

    Args:
        root: the root of a checkout.

    Raises:
        DataError: a file of settings cannot be read.
    """
    config = _config(root)
    cache = config["cache"].get("dir") or root.absolute() / ".dvc/cache"
    remotes = {name: str(values["url"]) for name, values in sorted(config["remote"].items())}
    return {"cache": str(Path(cache).resolve()), "remotes": remotes}


def share_cache(root: Path, other: Path) -> None:
    """Gives another checkout the cache of this one, in the settings that git does not track.

    Raises:
        DataError: a file of settings cannot be read.
    """
    with _config(other).edit("local") as settings:
        settings["cache"]["dir"] = read_settings(root)["cache"]


def _config(root: Path) -> Any:
    from dvc.config import Config, ConfigError  # type: ignore[import-untyped]  # DVC ships no types

    try:
        return Config(str(root.absolute() / ".dvc"))
    except ConfigError as error:
        raise DataError(f"DVC's settings in {root}: {one_line(error)}") from None


def main() -> int:
    """Returns 1 with one line on stderr if the settings cannot be read."""
    try:
        print(json.dumps(read_settings(Path())))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
