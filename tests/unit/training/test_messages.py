import ast
from typing import Any

import torch

from align.training.messages import flat, pack, unpack
from tests.support import ROOT


def test_a_checkpoint_arrives_as_it_was_sent() -> None:
    state: dict[str, Any] = {
        "step": 7, "rows": [{"step": 1, "train/loss": 0.1 + 0.2}], "nothing": None, "losses": [float("inf")],
        "optimiser": {"state": {0: {"moment": torch.arange(6.0).view(2, 3)}}, "betas": (0.9, 0.999)},
        "average": [
            torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
            torch.ones(3, 4)[:, 1:].T,
        ],
        "model": {"scalar": torch.tensor(3), "empty": torch.empty(0, 2), "half": torch.ones(2, dtype=torch.bfloat16)},
    }  # fmt: skip
    message, tensors = pack(state)
    sent = iter(tensors)

    def receive(size: int, dtype: torch.dtype) -> torch.Tensor:
        tensor = flat(next(sent))
        assert (tensor.shape, tensor.dtype) == ((size,), dtype)
        return tensor

    arrived = unpack(message, receive)
    assert str(arrived) == str(state)
    assert arrived["average"][0].is_contiguous(memory_format=torch.channels_last)
    assert list(arrived["optimiser"]["state"]) == [0] and isinstance(arrived["optimiser"]["betas"], tuple)


def test_nothing_from_the_wire_is_unpickled() -> None:
    """torch's collectives of objects unpickle what arrives; its c10d rendezvous unpickles its state."""
    objects = {
        "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list",
        "recv_object_list", "pickle", "cloudpickle", "dill", "rpc",
    }  # fmt: skip
    for path in sorted((ROOT / "align").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = {
                ast.Attribute: lambda node: {node.attr},
                ast.Name: lambda node: {node.id},
                ast.Import: lambda node: {alias.name for alias in node.names},
                ast.ImportFrom: lambda node: {node.module, *(alias.name for alias in node.names)},
            }.get(type(node), lambda node: set())(node)
            assert not objects & names, f"{path}:{node.lineno}"  # type: ignore[attr-defined]
            if isinstance(node, ast.Constant):
                assert node.value != "c10d", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
