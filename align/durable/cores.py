"""How many cores this process can keep busy."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cores(beside: int = 1, system: Path = Path("/")) -> int:
    """Those that this process may run on, and no more than the quota of its cgroup, of a container, pays for.

    Args:
        beside: processes of this machine that share them, unless each is bound to its own.
        system: the root of the file system.
    """
    everywhere = os.cpu_count() or 1
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everywhere
    shared = beside if most * beside > everywhere else 1
    with suppress(OSError):  # not Linux
        for line in (system / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            root = system / "sys/fs/cgroup" / ("cpu" if controllers else "")  # of version 1, or of version 2
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            for folder in (group := root / path.lstrip("/"), *group.parents):
                with suppress(OSError, ValueError):  # no such group, or no quota
                    quota, period = map(int, " ".join((folder / name).read_text("utf-8") for name in names).split())
                    most = min(most, quota // period) if quota > 0 else most
    return max(1, most // shared)
