"""`align run`: runs the whole pipeline in this checkout, under Prefect, and records it as branch run/<name>.

The flow itself is another program, so that nothing here imports Prefect.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from align.config import Params
from align.config.params import chosen_values
from align.errors import ConfigError
from align.local_stack import flow_environment

#: Of `python -m flows`: a server that this run has started stays.
KEEP = "--keep"


def main(params: Params, args: argparse.Namespace) -> None:
    """Replaces this process by the flow's, which checks the values. Raises as `request`."""
    become("pipeline", request(params, args), *([KEEP] if args.keep else []))


def request(params: Params, args: argparse.Namespace) -> str:
    """What a person asks for, as JSON of `flows.request.Request`.

    Raises:
        ConfigError: --params is given: a run reads the params.yaml of its checkout.
    """
    if args.params is not None:
        raise ConfigError(f"align {args.verb} reads ./params.yaml; change single values with --set SECTION.KEY=VALUE")
    fields = ("name", "ref", "only", "from_stage", "to_stage", "snapshot_dirty")
    asked = {field: getattr(args, field) for field in fields}
    return json.dumps(asked | {"overrides": chosen_values(params, args.overrides)}, default=str)


def become(program: str, *arguments: str) -> NoReturn:
    """Replaces this process by a program of `flows`, in the environment of flows."""
    command = [sys.executable, "-m", "flows", program, *arguments]
    os.execve(command[0], command, flow_environment(Path.cwd()))
