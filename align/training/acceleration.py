"""Faster training with the same result up to rounding: torch.compile and CUDA's settings."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from align.config.recipe import Recipe
from align.display.console import say
from align.errors import ConfigError, first_line
from align.model.dual_encoder import DualEncoder
from align.model.library_towers import layers


@contextmanager
def accelerated(model: DualEncoder, recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Compiles the towers' blocks and the loss, or neither, and sets CUDA's switches, which are reset afterwards.

    Only the forward function of a block or layer is compiled, so that names in the state dict, and hooks, stay.
    Repeated blocks share one compiled graph. Texts of any length share one graph; images have few sizes of parts, each
    with its own graph. On a CPU the switches are not set: newer CPUs also obey torch's setting for TF32. Raises
    ConfigError: torch fails to compile; the message says at what.
    """
    matmul, cudnn, on_gpu = torch.backends.cuda.matmul, torch.backends.cudnn, device.type == "cuda"
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    if on_gpu:
        # float32 products round to 10 bits, except in the loss; 16-bit products are not affected
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        # cuDNN picks its algorithms by timing, and the next process may pick others. Neither value makes a GPU repeat
        # itself to the bit: some sums add in any order.
        cudnn.benchmark = True
    compiles = recipe.compile or (recipe.compile is None and on_gpu and not triton_lacks())
    try:
        # on a CPU the loss is never compiled
        with _compiled(model) if compiles else as_written() if on_gpu else nullcontext():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextmanager
def _compiled(model: DualEncoder) -> Iterator[None]:
    from torch._dynamo.exc import TorchDynamoException  # a large part of torch

    of_images, of_texts = layers(model.vision_model), layers(model.text_model)
    for module, dynamic in [(layer, False) for layer in of_images] + [(layer, True) for layer in of_texts]:
        part = cast(Any, module)
        part.forward = torch.compile(part.forward, dynamic=dynamic)
    # dynamo counts recompilations per piece of code, and all blocks are one: the limit is for all of them. Each has
    # graphs with and without gradients, for two sizes of a part, with and without a mask.
    most = 8 * (len(of_images) + len(of_texts))
    try:
        with torch._dynamo.config.patch(recompile_limit=most, accumulated_recompile_limit=most):
            yield
    except TorchDynamoException as error:
        why = first_line(getattr(error, "inner_exception", error))  # else the line names the compiler alone
        raise ConfigError(f"compile: torch fails: {why}; set compile to false") from error


def require_compiler(recipe: Recipe) -> None:
    """Checks that a run can be compiled on this machine: torch reports it late, with a page of its own code.

    Raises ConfigError if the recipe wants it. Where the recipe leaves it open, a GPU without it is worth a warning.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and recipe.compile is not False and (lacking := triton_lacks()):
        wanted = f"compile: for a GPU torch needs {' and '.join(lacking)}"
        if recipe.compile:
            raise ConfigError(f"{wanted}; or set compile to false")
        say(f"warning: {wanted}; without them steps are slower and take more memory")
    if on_gpu or not recipe.compile:
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # imports half of torch
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils.cpp_extension import TORCH_LIB_PATH

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ConfigError("compile: torch finds no C++ compiler; install g++, or set compile to false") from None
    if " " in TORCH_LIB_PATH:
        raise ConfigError(
            f"compile: torch passes its folder to the linker without quotes, and there is a space in {TORCH_LIB_PATH}; "
            "create the environment elsewhere, or set compile to false"
        )


def triton_lacks() -> list[str]:
    """What is missing here that Triton needs to compile for a GPU: it builds its launcher with a C compiler."""
    chosen, header = os.environ.get("CC"), Path(sysconfig.get_path("include")) / "Python.h"
    compilers = [chosen] if chosen else ["gcc", "clang"]
    needs = {
        "Triton (`pip install triton`)": find_spec("triton") is not None,
        "a C compiler (gcc or clang, or the one that CC names)": any(map(shutil.which, compilers)),
        f"Python's headers ({header})": header.exists(),
    }
    return [what for what, there in needs.items() if not there]


def as_written() -> Any:
    """Within this block nothing runs compiled: evaluation has other sizes, which would each be compiled for one use."""
    return torch.compiler.set_stance("force_eager")
