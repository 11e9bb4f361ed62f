"""`python -m align.project.code`: writes code.yaml, a digest of the code that decides the bytes of each stage.

It is the first stage of dvc.yaml, and DVC runs it each time; each other stage depends on its own digest (see
`provenance`). So a stage is stale as soon as its code does something else, in a checkout as in an installed package.
"""

from __future__ import annotations

import sys
from pathlib import Path

from align.display.console import say
from align.durable.files import write_text
from align.errors import AlignError, one_line
from align.project.declared import CODE_FILE
from align.project.provenance import digest
from align.verbs import STAGES

_HEADER = "# Stage: digest of the code that decides its bytes. Written by each `dvc repro`.\n"


def main() -> int:
    """Writes the file in the working directory, complete or not at all.

    Returns:
        1 after one line that says why not: the code is not what Python reads, or the disk refuses.
    """
    try:
        lines = [f"{stage}: {digest(verb.module)}\n" for stage, verb in STAGES.items()]
        write_text(Path(CODE_FILE), _HEADER + "".join(lines))
    except (AlignError, OSError) as error:
        say(f"align: error: {one_line(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
