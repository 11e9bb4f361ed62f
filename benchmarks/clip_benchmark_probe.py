"""CLIP_benchmark's linear probe over features of a file, in its own environment: `... FEATURES.npz SEED [SEED ...]`.

Its code asks for CUDA. Here `.cuda()` does nothing, and the device compares equal to `cuda` but is the CPU. Features
lie where it keeps what it has computed. Prints one line of JSON per seed: CPU seconds and what it returns.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from clip_benchmark.metrics import linear_probe  # type: ignore[import-not-found,unused-ignore]  # of the peers only

_ASKED = "cuda"
BATCH_SIZE, RATE, EPOCHS = 64, 0.1, 10  # the defaults of its command line


class _Cpu(str):
    """The CPU, as a name of CUDA."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other == _ASKED or str.__eq__(self, other)


def probe(features: Path, seed: int) -> dict[str, float]:
    """What it measures, and the CPU seconds that it takes; its loaders work in this process."""
    arrays = np.load(features)
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        place = Path(folder) / "model"
        place.mkdir()
        for split in ("train", "val", "test"):
            torch.save(torch.from_numpy(arrays[split]), place / f"features_{split}.pt")
            torch.save(torch.from_numpy(arrays[f"{split}_labels"]), place / f"targets_{split}.pt")
        start = time.process_time()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            found = linear_probe.evaluate(
                torch.nn.Identity(), None, None, -1, BATCH_SIZE, 0, RATE, EPOCHS, "model", seed, folder, _Cpu("cpu"),
                val_dataloader=True, amp=False,
            )  # fmt: skip
        spent = time.process_time() - start
    return {"seconds": spent, "accuracy": float(found["lp_acc1"]), "decay": float(found["weight_decay"])}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for kind in (torch.nn.Module, torch.Tensor):
        setattr(kind, _ASKED, lambda self, *_: self)  # see the module
    for text in sys.argv[2:]:
        sys.stdout.write(json.dumps(probe(Path(sys.argv[1]), int(text))) + "\n")
        sys.stdout.flush()
