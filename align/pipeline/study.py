"""`align study`: runs the arms of a study with each seed, as runs like any other, and compares them on one page.

The flow is another program, as for `align run`. Typed again, the command makes the runs that are missing.
"""

from __future__ import annotations

import argparse
import json

from align.config import Params
from align.config.params import DEMO, chosen_values
from align.config.study import read_study
from align.errors import ConfigError
from align.pipeline.run import become


def main(params: Params, args: argparse.Namespace) -> None:
    """Replaces this process by the flow's. The study was read only to refuse a bad one before anything starts.

    Raises:
        ConfigError: it is not a study; or --params is given: a run reads the params.yaml of its checkout.
    """
    if args.params is not None:
        raise ConfigError("align study reads ./params.yaml; change single values with --set SECTION.KEY=VALUE")
    read_study(args.study)
    asked = {"study": str(args.study), "profile": args.profile or DEMO, "overrides": chosen_values(params, args.typed)}
    become("study", json.dumps(asked, default=str))
