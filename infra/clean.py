"""Removes what the next run makes again by itself: `make clean`.

    python infra/clean.py

What a person has put into `.align/`, or may still want, stays: data that `dvc push` wrote, the login, the history in
Prefect's database, what failed runs left, and checkpoints, which are hours of work.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from align.durable.locks import tried

STATE = Path(".align")
#: Copies of objects and of served models, measured values, logs, and the environments of make's lock, fuzz and bench.
MADE_AGAIN = ("store", "served", "features", "logs", "lock", "atheris", "peers")
#: Beside `.align`: times and hosts, and pages that DVC draws.
BESIDE = (Path("runtime"), Path("dvc_plots"))


def clean(root: Path) -> str | None:
    """Removes it; or removes nothing, and returns why.

    Args:
        root: the checkout.
    """
    if reason := _in_use(root):
        return reason
    for path in (*(root / STATE / name for name in MADE_AGAIN), *(root / name for name in BESIDE)):
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
    return None


def _in_use(root: Path) -> str | None:
    """What works here now, and how to end it; None if nothing does."""
    try:
        listed = json.loads((root / STATE / "services.json").read_text("utf-8"))
    except FileNotFoundError:
        listed = {}
    except ValueError:
        return f"{STATE}/services.json cannot be read: `make down`, then delete it"
    if listed:
        try:
            from align.local_stack import running_services
        except ImportError:  # the environment was removed, and with it what could tell
            return f"{STATE}/services.json lists services of `make up`: stop them with `make down` first"
        if running := running_services(root):
            return f"{', '.join(sorted(running))} of `make up` still run: stop them with `make down` first"
    for lock in sorted((root / STATE / "locks").glob("*")):
        with tried(lock, shared=True) as free:
            if not free:
                who = lock.read_text("utf-8", "replace") or "a run"
                return f"{who} is at work and holds {lock.relative_to(root)}: wait for it, or stop it first"
    return None


if __name__ == "__main__":
    if why := clean(Path.cwd()):
        print(f"align: error: nothing is removed: {why}", file=sys.stderr)
        sys.exit(1)
