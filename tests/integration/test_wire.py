import ast

from tests.support import ROOT


def test_nothing_from_the_wire_is_unpickled():
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
