import ast
from typing import Any

import pytest
import torch

from align.training.ranks import messages
from align.training.ranks.messages import Path, flat, pack, pieces, unpack
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

    paths: list[Path] = []

    def keep(path: Path, tensor: torch.Tensor) -> torch.Tensor:
        paths.append(path)
        return tensor

    arrived = unpack(message, receive, keep)
    assert str(arrived) == str(state)
    assert paths[:3] == [("optimiser", "state", 0, "moment"), ("average", 0), ("average", 1)]
    assert arrived["average"][0].is_contiguous(memory_format=torch.channels_last)
    assert list(arrived["optimiser"]["state"]) == [0] and isinstance(arrived["optimiser"]["betas"], tuple)


def test_bytes_travel_in_bounded_pieces_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "PIECE_BYTES", 16)
    weight = torch.arange(30.0).view(1, 3, 2, 5).to(memory_format=torch.channels_last)
    there = list(pieces(flat(weight)))
    assert [len(piece) for piece in there] == [16] * 7 + [8]
    assert there[0].data_ptr() == weight.data_ptr()
    assert list(pieces(flat(torch.empty(0)))) == []
    assert torch.cat([*pieces(flat(torch.ones(3, 4)[:, 1:]))]).view(torch.float32).tolist() == [1.0] * 9


def test_nothing_from_the_wire_is_unpickled() -> None:
    """torch's collectives of objects unpickle what arrives; its c10d rendezvous unpickles its state."""
    objects = {
        "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list",
        "recv_object_list", "pickle", "cloudpickle", "dill", "rpc",
    }  # fmt: skip
    own = ROOT / "align/services/executors/slurm.py"  # its pickles lie in a folder of mode 0700, and never travel
    for path in sorted({*(ROOT / "align").rglob("*.py")} - {own}):
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
