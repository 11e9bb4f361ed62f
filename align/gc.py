"""`align gc`: removes what is older than section `retention` keeps. The work is done by the program `flows.retention`.

Nothing here imports DVC, without which single objects of its cache and remotes cannot be removed.
"""

from __future__ import annotations

import argparse

from align.config import Params
from align.errors import ConfigError
from align.run import become


def main(params: Params, args: argparse.Namespace) -> None:
    """Replaces this process by the program's.

    Raises:
        ConfigError: --params is given: what goes depends on the params.yaml of the checkout.
    """
    if args.params is not None:
        raise ConfigError("align gc reads ./params.yaml; change single values with --set SECTION.KEY=VALUE")
    overrides = [word for override in args.overrides for word in ("--set", override)]
    become("flows.retention", *(["--yes"] if args.yes else []), *overrides)
