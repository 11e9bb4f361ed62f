"""Triton kernels: equal to the plain ones on a CPU and on a GPU, and compiled for GPUs that are not here.

CUDA builds of torch bring Triton. `make test-numerics` installs it into .align/triton.
"""

import os
import platform
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.support import ROOT, missing

pytestmark = [pytest.mark.numerics, pytest.mark.timeout(1500)]  # Triton's interpreter runs each kernel on a CPU
FOLDER = ROOT / ".align/triton"


def run(module, *arguments, **variables):
    """What a module of tests/support says, in a process of its own with Triton."""
    paths = [str(ROOT)]
    if find_spec("triton") is None:
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            pytest.skip(f"Triton has no wheel for {sys.platform} on {platform.machine()}")
        if not (FOLDER / "triton").exists():
            missing("Triton is not installed: make triton")
        paths.append(str(FOLDER))
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join(paths), **variables}
    command = [sys.executable, "-m", f"tests.support.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=1400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("what", ["operations", "layers"])
def test_the_kernels_compute_what_the_plain_ones_do(what, device):
    variables = {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "error"} if device.type == "cpu" else {}
    assert "equal" in run("batch_norm_kernels", what, device.type, **variables)


def test_a_map_of_more_numbers_than_32_bits_count_is_normalised_to_its_end(card):
    """Its last group, beside that group alone."""
    group, width, side, groups = 16, 288, 145, 23
    if 6 * 4 * groups * group * width * side**2 > torch.cuda.mem_get_info(card)[0]:  # plain kernels hold it in float32
        pytest.skip("the card has too little memory")
    x = torch.empty(groups * group, width, side, side, memory_format=torch.channels_last, device=card,
                    dtype=torch.bfloat16).normal_()  # fmt: skip
    weight, bias, last = torch.rand(width, device=card) + 0.5, torch.randn(width, device=card), x[-group:].clone()
    out, mean, inverse = torch.ops.align.normalise(x, weight, bias, None, None, group, 1e-3, True)
    alone, own_mean, own_inverse = torch.ops.align.normalise(last, weight, bias, None, None, group, 1e-3, True)
    torch.testing.assert_close((out[-group:], mean[-1:], inverse[-1:]), (alone, own_mean, own_inverse))
    del out
    grad = torch.ops.align.normalise_backward(x, x, mean, inverse, weight, bias, None, None, True)[0]
    known = own_mean, own_inverse, weight, bias, None, None, True
    torch.testing.assert_close(grad[-group:], torch.ops.align.normalise_backward(last, last, *known)[0])


@pytest.mark.skipif(torch.version.cuda is not None, reason="there Triton is torch's, and the kernels run on the GPU")
@pytest.mark.parametrize("capability", ["80", "90"], ids=["A100", "H100"])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(capability, tmp_path):
    assert "kernels" in run("absent_gpu", capability, TRITON_CACHE_DIR=str(tmp_path))
