"""`align code`: writes code.yaml, a digest of the code that decides the bytes of each stage (see `provenance`).

It is the first stage of dvc.yaml, and DVC runs it each time; each other stage depends on its own digest. So a stage is
stale as soon as its code does something else, in a checkout as in an installed package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from align.config import Params
from align.durable.files import write_text
from align.project.declared import CODE_FILE
from align.project.provenance import digest
from align.verbs import STAGES

_HEADER = "# Stage: digest of the code that decides its bytes. Written by `align code`, as in each `dvc repro`.\n"


def main(params: Params, args: argparse.Namespace) -> None:
    """Writes the file in the working directory, complete or not at all."""
    lines = [f"{stage}: {digest(verb.module)}\n" for stage, verb in STAGES.items()]
    write_text(Path(CODE_FILE), _HEADER + "".join(lines))
