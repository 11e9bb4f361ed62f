"""`python -m flows.local_stack up|down|status`: infra/local.py, for projects that have no folder infra/."""

from __future__ import annotations

import runpy

from align.installed import installed

if __name__ == "__main__":
    runpy.run_path(str(installed("infra/local.py")), run_name="__main__")
