"""The lock of the machine's accelerator: only one run of a user trains at a time (`align.durable.locks`)."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from align.durable.locks import locked
from align.errors import ServiceError
from flows.dag import Stage

#: Device files of the drivers of NVIDIA (one for each GPU) and AMD (one for all GPUs).
DEVICES = ("nvidia[0-9]*", "kfd")
#: With an empty value, or -1, each hides all GPUs from a process.
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def has_accelerator(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> bool:
    """Whether stages that we start find a GPU, as far as we can tell without loading torch."""
    if any(environment.get(name, "all").strip() in ("", "-1") for name in HIDING):
        return False
    return any(any(devices.glob(pattern)) for pattern in DEVICES)


def uses_accelerator(stage: Stage) -> bool:
    """Whether a stage computes on a GPU if there is one."""
    return stage.flow == "training" or stage.name == "index"


@contextmanager
def accelerator(who: str, log: Callable[[str], None], check: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the machine's accelerator for one stage, if there is one; two trainers would share its memory.

    The arguments are those of `align.durable.locks.locked`.
    """
    if not has_accelerator():
        yield
        return
    with locked(_machine_folder() / "accelerator.lock", who, log, check):
        yield


def _machine_folder() -> Path:
    """A folder of this user alone, the same for all checkouts on this machine.

    Raises:
        ServiceError: the folder belongs to somebody else, who could make our runs wait for ever.
    """
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(runtime) / "align"
    else:
        folder = Path(tempfile.gettempdir()) / f"align-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ServiceError(f"{folder}: not a folder of yours alone; set XDG_RUNTIME_DIR to one, such as ~/.cache")
    return folder
