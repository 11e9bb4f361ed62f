"""Writes `scipy_spearman.json`: scipy's Spearman correlations, with and without ties.

`python -m tests.golden.scipy_spearman` with the project on PYTHONPATH.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")


def inputs():
    """Pairs of (20, n): without ties, ratings on a coarse scale against real values, both coarse."""
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 20, 57))
    other += one
    coarse = np.round(one, 1), np.round(other * 2) / 2
    return {"real": (one, other), "rated": (coarse[0], other), "coarse": (coarse[1], np.round(one))}


def figures():
    """What the package answers, which is imported here."""
    from scipy.stats import spearmanr

    return {
        name: {
            "spearman": [float(spearmanr(a, b).statistic) for a, b in zip(one, other, strict=True)],
        }
        for name, (one, other) in inputs().items()
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps({"scipy": version("scipy"), **figures()}, indent=1) + "\n")
