"""ALIGN, end to end: noisy web pairs in; a measured, registered and searchable dual encoder out.

    import align
    model = align.load("models/finetuned")  # or "models:/align@champion"
    model.similarity(["fox.jpg"], ["a red fox", "an owl"])

`align.load` and `align.open_dataset` are the Python API (docs/python.md); all else may change without notice.

Each stage is a folder with a module per verb, such as `align/filter/filter.py`; `align/verbs.py` lists the verbs. What
stages share is in the other folders, which say in their `__init__` what may come in; what starts them is in `flows/`.
Beside them lie only the command line and what any folder may need.
"""

import importlib

_API = {"load": "models", "Model": "models", "open_dataset": "datasets", "Dataset": "datasets", "Pair": "datasets"}
__all__ = sorted(_API)


def __getattr__(name: str) -> object:
    """Imports what a name of the API needs only when it is used: a command pays for nothing."""
    if name not in _API:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    return getattr(importlib.import_module(f"align.python.{_API[name]}"), name)
