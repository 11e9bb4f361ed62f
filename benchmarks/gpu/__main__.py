"""What a CUDA card does: first whether the results are right, then how fast; writes benchmarks/gpu.md.

Without a card a CPU stands in with tiny towers, so that the program itself can be tried. That page is printed, and
written to `--output` if it is given, never to benchmarks/gpu.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from align.display.console import say
from align.durable.files import write_text
from benchmarks.gpu.journal import Budget
from benchmarks.gpu.machine import card_here, describe, why_no_cuda
from benchmarks.gpu.page import failed, page
from benchmarks.gpu.sections import SECTIONS, run_all
from benchmarks.peers import build_beside_us

PAGE = Path(__file__).parent.with_suffix(".md")
#: Of all sections; starting, the page and what pip installs come on top.
TOTAL_S = 560.0
#: Without a card all takes some three minutes of two cores, and other programs may use them: limits are longer.
_PATIENCE = 4


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 if a check or a section failed; 2 where torch cannot use the card that is here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = [section.name for section in SECTIONS]
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--output", type=Path, help="a file for the page, beside or instead of benchmarks/gpu.md")
    parser.add_argument("--seconds", type=float, help=f"for all sections ({TOTAL_S:.0f}; without a card more)")
    parser.add_argument("--without-peers", action="store_true", help="do not install open_clip")
    args = parser.parse_args(arguments)
    if unknown := set(args.sections) - set(names):
        parser.error(f"no section named {', '.join(sorted(unknown))}")
    card = card_here()
    if (why := why_no_cuda(card)) is not None:
        say(f"bench-gpu: {why}")
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    say(f"bench-gpu: {describe(card)}" + (" A CPU stands in for a card, with tiny towers." if device == "cpu" else ""))
    peers = [] if args.without_peers else _peers()
    start = time.monotonic()
    patience = 1 if device == "cuda" else _PATIENCE
    chosen = [
        replace(section, most_s=section.most_s * patience)
        for section in SECTIONS
        if not args.sections or section.name in args.sections
    ]
    seconds = args.seconds or TOTAL_S * patience
    with tempfile.TemporaryDirectory(prefix="align-bench-gpu-") as folder:
        results = run_all(chosen, Budget(seconds), Path(folder), device, peers)
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = page(results, describe(card), today, time.monotonic() - start, stand_in=device == "cpu")
    print(text)
    if args.output is not None:
        write_text(args.output, text)
    if device == "cuda" and not args.sections:
        write_text(PAGE, text)
        say(f"bench-gpu: written to {PAGE}")
    wrong = failed(results)
    say(
        f"bench-gpu: {time.monotonic() - start:.0f} s; "
        + (f"failed: {'; '.join(wrong)}" if wrong else "nothing failed")
    )
    return 1 if wrong else 0


def _peers() -> list[Path]:
    """The folder of open_clip; none where pip cannot bring it."""
    try:
        return [build_beside_us()]
    except (OSError, RuntimeError) as error:
        say(f"bench-gpu: open_clip cannot be installed, so ours has no peer: {str(error).splitlines()[-1][:200]}")
        return []


if __name__ == "__main__":
    sys.exit(main())
