"""`python -m flows.local_stack up|down|status|worker POOL`: `make up` and so on, for projects without a Makefile."""

from __future__ import annotations

import runpy
import sys

from align.project.installed import installed

if __name__ == "__main__":
    script = "local.py"
    if sys.argv[1:2] == ["worker"]:
        script = "worker.py"
        del sys.argv[1]
    runpy.run_path(str(installed(f"infra/{script}")), run_name="__main__")
