"""Does search fall silent when nothing fits, and only then? `python -m benchmarks.surely`, some ten CPU seconds.

The ready search of the sample draws its lines anew. Measured are: what the promise costs and keeps on the half of the
held-out texts that it has not seen, in the mean of 1,000 splits; nAUC beside the score alone; the labelled queries,
whose pictures are there; forty texts of things that are surely not there; and the time that a line adds to a query.
A bar that is missed says so. `--renew` writes the promise into the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from align.formats.image_index import ImageIndex, Promise
from align.formats.ready import INDEX, MODEL, write_manifest
from align.model.embedder import Embedder, SearchEncoder
from align.search.queries import names, read_queries
from align.search.surely import LEVELS, ask_held_out, held_levels, line_for, meaning, promised
from align.search.surely_report import surely_metrics
from align.services.vector_index import VectorIndex
from benchmarks.measure import conditions, cpu_s
from tests.support import ROOT

ABSENT = ROOT / "tests/support/absent.json"
_TIMES = 200


def levels_held(index: ImageIndex, encoder: SearchEncoder, promise: Promise, texts: Sequence[str]) -> list[list[float]]:
    """For each text the levels that its first picture holds."""
    return [
        held_levels(promise, index.search(vector, 1)[0].score, float(split))
        for vector, split in zip(encoder.embed_texts(texts), encoder.splits(texts), strict=True)
    ]


def measure(index: ImageIndex, encoder: SearchEncoder) -> tuple[list[str], Promise]:
    """The bars as a table in Markdown, and the promise."""
    asked = ask_held_out(index, encoder)
    if asked is None:
        raise SystemExit("too few held-out texts to measure")
    promise, metrics = promised(asked), surely_metrics(asked)
    labelled = read_queries(ROOT / "data/sample/queries.json").queries
    absent: list[str] = json.loads(ABSENT.read_text())
    there = levels_held(index, encoder, promise, [one.query for one in labelled])
    firsts = [index.search(vector, 1)[0] for vector in encoder.embed_texts([one.query for one in labelled])]
    is_right = [names(hit.item.texts, one.expected) for hit, one in zip(firsts, labelled, strict=True)]
    not_there = levels_held(index, encoder, promise, absent)
    rows = []

    def add(what: str, bar: str, value: str, *, met: bool) -> None:
        rows.append(f"| {what} | {bar} | **{value}**{'' if met else ', missed'} |")

    for level in LEVELS:
        loss, promise_loss = metrics[f"index/surely/{level}/loss"], 1 - level
        bar = f"{promise_loss - 0.02:.0%} to {promise_loss + 0.02:.0%}"
        add(f"{level}: loss on the unseen half", bar, f"{loss:.1%}", met=abs(loss - promise_loss) <= 0.02)
        shown, right = (metrics[f"index/surely/{level}/{name}"] for name in ("share_shown", "share_of_right_shown"))
        add(f"{level}: of right first pictures above the line", "", f"{right:.0%}, of all {shown:.0%}", met=True)
        num_there, num_not = (sum(level in levels for levels in each) for each in (there, not_there))
        most = len(labelled) - 1
        add(f"{level}: of {len(labelled)} labelled queries", f"{most}", f"{num_there}", met=num_there >= most)
        of_right = [level in levels for levels, right in zip(there, is_right, strict=True) if right]
        add(f"{level}: of {len(of_right)} of them whose first picture is right", "", f"{sum(of_right)}", met=True)
        most = len(absent) // 10
        add(f"{level}: of {len(absent)} absent texts", f"at most {most}", f"{num_not}", met=num_not <= most)
    gain, low, high = (metrics[f"index/surely/nauc_gain{end}"] for end in ("", "/low", "/high"))
    add("nAUC minus that of the score alone", "above 0", f"{gain:.3f} [{low:.3f}, {high:.3f}]", met=low > 0)

    def draw() -> None:
        for number in range(_TIMES):
            split = float(encoder.splits([absent[number % len(absent)]])[0])
            meaning(promise, LEVELS[0], has_sure=line_for(promise, LEVELS[0], split) < 0.5)

    each_ms = 1000 * cpu_s(draw) / _TIMES
    add("CPU ms that a line adds to a query", "1", f"{each_ms:.2f}", met=each_ms <= 1)
    return ["| what | bar | measured |", "|---|--:|--:|", *rows], promise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surely", description=__doc__)
    parser.add_argument("--ready", type=Path, default=ROOT / "data/sample/ready", metavar="DIR")
    parser.add_argument("--renew", action="store_true", help="write the promise into the folder")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    index = ImageIndex.load(args.ready / INDEX, VectorIndex.load)
    rows, promise = measure(index, Embedder.load(args.ready / MODEL))
    print(*rows, "", conditions("lines of the ready search", ("torch", "faiss-cpu"), load), sep="\n")
    if args.renew:
        index.promising(promise, args.ready / INDEX)
        write_manifest(args.ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
