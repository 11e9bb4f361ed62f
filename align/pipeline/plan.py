"""`align plan`: says what `align run` with the same arguments would do and need.

The program itself is one of `flows`, since it asks DVC; nothing here imports it. Cards that are not here need none.
"""

from __future__ import annotations

import argparse

from align.config import Params
from align.pipeline import run


def main(params: Params, args: argparse.Namespace) -> None:
    """Replaces this process by the program that plans.

    Raises:
        ConfigError: --params is given: a plan is of the params.yaml of its checkout.
    """
    if args.cards is not None:
        from align.pipeline import cards  # imports torch

        cards.main(params, args.cards, args.price, as_json=args.json)
        return
    run.become("plan", run.request(params, args), *(["--json"] if args.json else []))
