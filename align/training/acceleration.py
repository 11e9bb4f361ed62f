"""What makes the same training faster: torch.compile, CUDA's settings, and memory that is kept from step to step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from align.config.recipe import Recipe
from align.errors import ConfigError
from align.model.dual_encoder import DualEncoder

#: Graphs that one block or layer may need: with and without gradients, two sizes of a part, with and without a mask.
_GRAPHS = 8

#: glibc's parameters: the end of the heap beyond a size is given back when freed, and so are blocks from another on,
#: of which there are so many at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


@contextmanager
def accelerated(model: DualEncoder, recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Compiles the towers' blocks and sets CUDA's switches as the recipe says; these are put back after the block.

    Compiled is what a block or layer does, not the module: names in the state dict stay, and so do hooks. Repeated
    ones share what was compiled for the first. Texts of any length are one graph; images have few sizes of parts, each
    a graph of its own. Evaluation is left as it is: see `as_written`.

    On a CPU the switches are left alone: newer ones take torch's word for TF32, too.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    if device.type == "cuda":
        matmul.allow_tf32 = cudnn.allow_tf32 = recipe.tf32
        cudnn.benchmark = recipe.cudnn_benchmark
    try:
        if not recipe.compile:
            yield
            return
        blocks, layers = list(model.vision_model.encoder.blocks), list(model.text_model.encoder.layer)
        for module, dynamic in [(block, False) for block in blocks] + [(layer, True) for layer in layers]:
            part = cast(Any, module)
            part.forward = torch.compile(part.forward, dynamic=dynamic)
        # all blocks are one piece of code to dynamo, which would take their shapes for a piece that never settles
        most = _GRAPHS * (len(blocks) + len(layers))
        with torch._dynamo.config.patch(recompile_limit=most, accumulated_recompile_limit=most):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """What is freed in this block stays with the process, for the next step to take, and is given back after it.

    glibc gives large blocks back to the kernel at once, and each step's pixels and activations are then page faults
    anew: four fifths of the time that making floats of 64 images of 289 px takes. Peak memory grows by what lies
    between blocks that are kept, 9 % there (`tests/benchmarks/kept_memory.py`). Other C libraries have no such
    switch, and are left as they are.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)  # no threshold: older ones refuse more than 32 MiB, and would stay at 128 KiB then
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 1 << 16)
        # where glibc's own adjustment of both ends: it cannot be switched on again
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def require_compiler() -> None:
    """Whether towers can be compiled for this machine's CPU, which torch tells late, with a page of its own code.

    Raises:
        ConfigError: they cannot; says why.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # they bring half of torch along
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils.cpp_extension import TORCH_LIB_PATH

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError("compile: torch finds no C++ compiler; install g++, or set compile to false") from None
    if " " in TORCH_LIB_PATH:
        raise ConfigError(
            f"compile: torch hands its folder to the linker without quotes, and there is a space in {TORCH_LIB_PATH}; "
            "make the environment elsewhere, or set compile to false"
        )


def as_written() -> Any:
    """In this block nothing that is compiled runs so: evaluation sees other sizes, and would compile them for once."""
    return torch.compiler.set_stance("force_eager")
