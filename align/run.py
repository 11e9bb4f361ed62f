"""`align run`: the whole pipeline in this checkout, under Prefect, recorded as branch run/<name>.

Owns the environment that flows run in; the flow itself is a program of its own, so that nothing here imports Prefect.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from align.config import Params
from align.errors import ConfigError

#: Where `make up` says what it started, and where Prefect keeps its database: servers and flows share both.
SERVICES_FILE = Path(".align/services.json")
PREFECT_HOME = Path(".align/prefect")

#: Prefect 3.9 gives its temporary server 20 s, which a busy machine with two cores exceeds.
SERVER_START_TIMEOUT_S = 180


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `align run`."""
    parser.add_argument("--name", default="demo", help="the result becomes branch run/NAME (default: demo)")
    parser.add_argument(
        "--ref", metavar="REV", help="run this revision in a worktree of its own; so does --set (default: right here)"
    )
    parser.add_argument(
        "--snapshot-dirty",
        action="store_true",
        help="in that worktree, HEAD with your changes instead of refusing them",
    )


def main(params: Params, args: argparse.Namespace) -> None:
    """Becomes the flow's process. `params` was read to refuse a bad override before anything starts.

    Raises:
        ConfigError: another params file is asked for: a run reads the one of its checkout.
    """
    if args.params is not None:
        raise ConfigError("align run reads ./params.yaml; change single values with --set SECTION.KEY=VALUE")
    command = [sys.executable, "-m", "flows.pipeline", "--name", args.name]
    if args.snapshot_dirty:
        command.append("--snapshot-dirty")
    if args.ref:
        command += ["--ref", args.ref]
    for override in args.overrides:
        command += ["--set", override]
    os.execve(command[0], command, flow_environment(Path.cwd()))


def flow_environment(root: Path) -> dict[str, str]:
    """The environment of a flow or a server of the checkout `root`: what the user has set wins.

    Prefect keeps its state in the checkout and nothing in the home directory; telemetry is off; servers that `make up`
    started are used if they answer.
    """
    (root / PREFECT_HOME).mkdir(parents=True, exist_ok=True)  # Prefect makes one level, SQLite none
    ours = {
        "PREFECT_HOME": str(root / PREFECT_HOME),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SERVER_START_TIMEOUT_S),
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if "PREFECT_API_URL" not in os.environ and (url := _running_prefect(root)):
        ours["PREFECT_API_URL"] = url
    scripts = str(Path(sys.executable).parent)  # dvc and align, though the virtual environment may not be active
    path = os.environ.get("PATH", os.defpath)
    if scripts not in path.split(os.pathsep):
        path = f"{scripts}{os.pathsep}{path}"
    return ours | dict(os.environ) | {"PATH": path}


def _running_prefect(root: Path) -> str | None:
    try:
        url: str = json.loads((root / SERVICES_FILE).read_text("utf-8"))["prefect"]["url"]
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer:
            return f"{url}/api" if answer.status == 200 else None
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
