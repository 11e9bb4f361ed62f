"""The peak of a process's resident memory, from now on."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """From here on the peak is counted again, without what making the inputs took."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The largest resident memory since the process started, or since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
