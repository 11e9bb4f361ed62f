"""Features of timm's EfficientNet on made-up weights, for the test of their conversion. Needs timm:

    python -m tests.golden.timm_towers

writes timm_towers.json: timm's names and shapes, and the mean of its last block's map over two pictures, for each way
in which its variants compute. Weights and pictures are functions of a name, so no file holds them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")
#: A picture's side. It is halved five times, and always even before, so that timm pads as this project does.
PX = 64
#: Variant -> batch-norm's eps, mean and deviation of its pixels, and what surrounds a picture: zeros, as in timm, or
#: mid-grey.
VARIANTS: dict[str, tuple[float, tuple[float, ...], tuple[float, ...], str]] = {
    "tensorflow": (1e-3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "zeros"),
    "torch": (1e-5, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "zeros"),
    "imagenet": (1e-3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "zeros"),
    "imagenet in grey": (1e-3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "grey"),
}


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict whose values keep the scale of what passes, so that no part of the tower is silent."""
    return {name: torch.from_numpy(_values(name, shape)) for name, shape in shapes.items()}


def pictures() -> Tensor:
    """(2, 3, PX, PX) in [0, 1]."""
    return torch.from_numpy(_generator("pictures").random((2, 3, PX, PX)).astype(np.float32))


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))


def _values(name: str, shape: list[int]) -> Any:
    generator = _generator(name)
    if name.endswith("num_batches_tracked"):
        return np.array(7, dtype=np.int64)
    if name.endswith("running_var"):
        return generator.uniform(0.002, 0.006, shape).astype(np.float32)  # small, so that eps counts
    if name.endswith(".weight") and len(shape) == 1:
        return generator.uniform(0.03, 0.1, shape).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) or 1
    scale = 0.1 if len(shape) == 1 else (2.0 / fan_in) ** 0.5
    return (scale * generator.standard_normal(shape)).astype(np.float32)


@torch.no_grad()
def main() -> None:
    """Writes the file."""
    import timm

    names: dict[str, list[int]] = {}
    features: dict[str, list[list[float]]] = {}
    for variant, (eps, mean, std, around) in VARIANTS.items():
        tower: Any = timm.create_model("tf_efficientnet_b0", bn_eps=eps).eval()
        names = {name: list(value.shape) for name, value in tower.state_dict().items()}
        tower.load_state_dict(weights(names))
        mean_C11, std_C11 = (torch.tensor(colours)[:, None, None] for colours in (mean, std))
        stem = tower.conv_stem((pictures() - mean_C11) / std_C11)
        if around == "grey":
            framed = (torch.nn.functional.pad(pictures(), (0, 1, 0, 1), value=0.5) - mean_C11) / std_C11
            stem = torch.nn.functional.conv2d(framed, tower.conv_stem.weight, stride=2)
        hidden = tower.blocks(tower.bn1(stem))
        features[variant] = [[round(value, 5) for value in row] for row in hidden.mean((2, 3)).tolist()]
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {"names": names, **features}.items()]
    FILE.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
