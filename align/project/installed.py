"""Files that come with the code and are not modules: beside the modules in a wheel, else in the checkout."""

from __future__ import annotations

from pathlib import Path


def installed(name: str) -> Path:
    """The file of this path from the root of a checkout, wherever the code is installed."""
    package = Path(__file__).parents[1]
    packaged = package / name
    return packaged if packaged.exists() else package.parent / name
