"""The name of a trained model by its bytes: what was embedded with one model is no use to another."""

from __future__ import annotations

import hashlib
from pathlib import Path

from align.errors import DataError
from align.stage import sha256_file


def model_digest(model_dir: Path, tokenizer_dir: Path) -> str:
    """sha256 over the files that decide an embedding: weights, configuration and vocabulary.

    Raises:
        DataError: one of them is missing.
    """
    digest = hashlib.sha256()
    for path in (model_dir / "model.safetensors", model_dir / "config.json", tokenizer_dir / "tokenizer.json"):
        if not path.is_file():
            raise DataError(f"{path}: no such file; run the stage that writes it")
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()
