"""The card and what drives it."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import torch

from align.pipeline.cards import card_named

_T = TypeVar("_T")

_QUERIES = ("name", "driver_version", "power.limit", "memory.total", "clocks.max.sm", "temperature.gpu")


def card_here() -> dict[str, str]:
    """What nvidia-smi says of the first card, or torch where that is missing; empty where there is none."""
    if found := _by_nvidia_smi():
        return found
    return {"name": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _by_nvidia_smi() -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERIES)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(_QUERIES, values, strict=False))


def why_no_cuda(card: dict[str, str]) -> str | None:
    """What to install where a card is there that torch cannot use; None where all is well, or there is no card."""
    if not card or torch.cuda.is_available():
        return None
    name, own = card.get("name", "a card"), torch.__version__
    if torch.version.cuda is None:
        plain = own.partition("+")[0]
        vision = _version("torchvision").partition("+")[0]
        return (
            f"this machine has {name}, and torch {own} is a build without CUDA. PyPI's own build has it: "
            f"`.venv/bin/python -m pip install --force-reinstall torch=={plain} torchvision=={vision}` "
            "(without an --extra-index-url of CPU builds), then run this again"
        )
    return (
        f"this machine has {name} with driver {card.get('driver_version', 'unknown')}, and torch {own} is built for "
        f"CUDA {torch.version.cuda}, which it cannot use here: install a newer driver, or torch for an older CUDA"
    )


def published_tflops(name: str) -> float | None:
    """The dense bfloat16 peak of a card by its name; None if it is not known here, as that of a part of a card."""
    card = card_named(name)
    return None if card is None else card.tflops


def describe(card: dict[str, str]) -> str:
    """A line on what was measured where."""
    facts = [
        card.get("name") or f"no card; {os.cpu_count()} cores ({platform.machine()})",
        f"driver {card['driver_version']}" if "driver_version" in card else "",
        f"power limit {card['power.limit']}" if "power.limit" in card else "",
        f"memory {card['memory.total']}" if "memory.total" in card else "",
        f"highest SM clock {card['clocks.max.sm']}" if "clocks.max.sm" in card else "",
        f"torch {torch.__version__}",
        f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA",
        f"cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else "",
        f"Triton {_version('triton')}",
        f"Python {platform.python_version()}",
    ]
    return ", ".join(fact for fact in facts if fact) + "."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def synchronise(device: torch.device) -> None:
    """Waits for what the device computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


#: What errors of other classes say when memory is short: the driver's and Triton's, cuDNN's, and cuBLAS's.
_NO_MEMORY = ("out of memory", "unable to find an engine", "alloc_failed")
#: What they say when the process can compute nothing more on its card.
_LOST = ("illegal memory access", "unspecified launch failure", "device-side assert")


def out_of_memory(error: Exception) -> bool:
    """Whether the device has too little memory. Libraries say so in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _says(error, _NO_MEMORY))


def card_lost(error: Exception) -> bool:
    """Whether CUDA failed in a way after which every later call in this process may fail, too."""
    if out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _says(error, _LOST))


def _says(error: Exception, signs: tuple[str, ...]) -> bool:
    return any(sign in str(error).lower() for sign in signs)


def in_a_line(error: Exception) -> str:
    """Class, place and first line of an error; CUDA's have more, with advice on how to find their cause."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}: {first}"


def attempt(work: Callable[[], _T]) -> _T | None:
    """What `work` returns, or None if the device has too little memory; its memory is free again then."""
    try:
        return work()
    except Exception as error:
        if not out_of_memory(error):
            raise
        # the frames that hold the tensors are gone after this block
    release()
    return None


def release() -> None:
    """Returns what nobody holds any more to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def matmul_tflops(device: torch.device, size: int, seconds: float = 1.0) -> float:
    """What a product of two large bfloat16 matrices reaches here: the peak that a program can hope for."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    torch.mm(left, right)
    best, ends = float("inf"), time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < ends:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(5):
            torch.mm(left, right)
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / 5)
    return 2 * size**3 / best / 1e12
