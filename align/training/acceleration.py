"""What makes the same training faster: torch.compile and CUDA's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from align.config.recipe import Recipe
from align.errors import ConfigError
from align.model.dual_encoder import DualEncoder

#: Graphs that one block or layer may need: with and without gradients, two sizes of a part, with and without a mask.
_GRAPHS = 8


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
