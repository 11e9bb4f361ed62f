"""What operations compute, move and leave, eagerly and as a compiler joins them."""

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.nn import functional as F

from align.model.image_tower import ImageTower
from align.pipeline.work import Work
from tests.support.training_data import MODEL

MAP = 4 * 2 * 32 * 8 * 8  # bytes


def convolved(x, weight):
    return F.conv2d(F.silu(x) * 2.0, weight)


@pytest.mark.parametrize(("compiled", "moved"), [
    (False, {"silu": 2 * MAP, "mul": 2 * MAP, "convolution": 2 * MAP + 4 * 32 * 32}),
    (True, {"convolution": 4 * MAP + 4 * 32 * 32}),  # reads x, writes what it needs, reads that, writes its own
])  # fmt: skip
def test_a_compiler_joins_what_is_element_by_element(compiled, moved):
    with torch.device("meta"):
        x, weight = torch.empty(2, 32, 8, 8), torch.empty(32, 32, 1, 1)
        with Work(compiled=compiled) as work:
            out = convolved(x, weight)
    assert {name: number for name, _, number in work.done} == moved
    assert work.kept_bytes == out.nbytes


def test_sums_over_the_same_values_share_a_pass():
    with torch.device("meta"):
        x, other = torch.empty(2, 32, 8, 8), torch.empty(2, 32, 8, 8)
        with Work(compiled=True) as work:
            F.silu(x).sum(), (x * x).sum(), (x * other).sum()
    assert [moved for *_, moved in work.done] == [MAP + 4, 4, 2 * MAP + 4]


def test_gradients_of_depthwise_convolutions_count_as_much_as_the_forward_pass():
    with torch.device("meta"):
        layer = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        x = torch.empty(2, 32, 8, 8, requires_grad=True)
        with Work() as work:
            F.conv2d(x, layer.weight, padding=1, groups=32).backward(torch.empty(2, 32, 8, 8))
    counted = {name: operations for name, operations, _ in work.done}
    assert counted["convolution"] == 2 * 2 * 32 * 64 * 9
    assert counted["convolution_backward"] == 2 * counted["convolution"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf.*:UserWarning")
@pytest.mark.parametrize("cheap", [False, True])
def test_what_counts_as_kept_is_what_torch_keeps_of_a_compiled_block(cheap):
    """Its partitioner decides, as it does for inductor."""
    kept = []

    def partition(joint, inputs, *, num_fwd_outputs, **options):
        forward, backward = min_cut_rematerialization_partition(
            joint, inputs, compiler="inductor", num_fwd_outputs=num_fwd_outputs, **options
        )
        saved = {each.name: each.meta["val"] for each in forward.graph.output_node().args[0][num_fwd_outputs:]}
        kept.extend(each for each in saved.values() if isinstance(each, torch.Tensor) and each.ndim > 2)
        return forward, backward

    def as_it_is(graph, _):
        return graph.forward

    backend = aot_autograd(
        fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=partition, decompositions=select_decomp_table
    )
    with torch.device("meta"):
        block = ImageTower(MODEL).bfloat16().train().encoder.blocks[3]
        block.keeps_convolutions = cheap
        weights = {each.shape for each in block.parameters()}
        x = torch.empty(8, block.expansion.expand_conv.in_channels, 16, 16, dtype=torch.bfloat16, requires_grad=True)
        with Work(compiled=True) as work:
            own = x * 1.0
            out = block(own)
        torch._dynamo.reset()
        torch.compile(block, backend=backend, dynamic=False)(x)
        torch._dynamo.reset()
    assert out.requires_grad
    assert sum(each.nbytes for each in kept if each.shape not in weights) == pytest.approx(work.kept_bytes, rel=0.01)
    assert len(kept) > 3
