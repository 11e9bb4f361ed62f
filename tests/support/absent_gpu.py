"""Compiles the Triton kernels for a GPU that is not here: `python -m tests.support.absent_gpu 90`.

The kernels' own callers are run on a CPU's memory, with a driver of Triton that names the GPU and launches nothing. So
arguments, types and sizes are those that a GPU would get. TRITON_INTERPRET must not be set.
"""

import re
import subprocess
import sys
import tempfile

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from align.model import batch_norm_triton as module

EPS = 1e-3
#: What reads and writes maps does it 16 bytes at a time, where rows of channels allow that.
WIDE = ("part_moments", "values", "part_sums", "gradient_sums", "gradient_values")


class _Absent:
    """Of a compute capability, such as 90."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


def compile_all(capability):
    """Raises AssertionError where a kernel spills registers, or does not read 16 bytes at a time."""
    compiled = {}

    def compile_only(function, grid):
        def launch(*args, **options):
            kernel = function.run(*args, grid=grid, warmup=True, **options)
            compiled[f"{function.__name__} {kernel.hash}"] = kernel

        return launch

    JITFunction.__getitem__ = compile_only
    driver.set_active(_Absent(capability))
    for kind in (torch.bfloat16, torch.float16, torch.float32):
        _launch((4, 48, 5, 5), kind)
    _launch((4, 40, 23, 23), torch.bfloat16)  # in units of 8, and two programs for a sample's rows
    wide = set(compiled)
    _launch((4, 1, 1, 1), torch.bfloat16)  # where Triton makes a constant of a 1
    _launch((4, 16, 3, 3), torch.bfloat16)  # where the number of units is 1
    assert {name.split()[0] for name in compiled} == {*WIDE, "group_moments"}
    for name, kernel in compiled.items():
        usage = _usage(kernel.asm["cubin"])
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), f"{name} spills: {usage}"
        if name in wide and name.split()[0] in WIDE:
            assert "ld.global.v4.b32" in kernel.asm["ptx"], f"{name} reads less than 16 bytes at a time"
    print(f"{len(compiled)} kernels for {capability}")


def _launch(shape, kind):
    x = torch.zeros(shape, dtype=kind).contiguous(memory_format=torch.channels_last)
    gate, keep, vector = torch.zeros(shape[:2], dtype=kind), torch.zeros(shape[0]), torch.zeros(shape[1])
    mean, inverse = (torch.zeros(2, shape[1]) for _ in range(2))
    module.normalise(x, vector, vector, None, None, 2, EPS, True)
    module.normalise(x, vector, vector, keep, x, 2, EPS, False)
    module.normalise_pooled(x, vector, vector, 2, EPS)
    module.activated(x, mean, inverse, vector, vector, gate)
    module.gate_gradient(x, x, mean, inverse, vector, vector)
    module.normalise_backward(x, x, mean, inverse, vector, vector, gate, torch.zeros(shape[:2]), True)
    module.normalise_backward(x, x, mean, inverse, vector, vector, keep[:, None], None, False)


def _usage(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    compile_all(int(sys.argv[1]))
