"""A store in a folder, and files in it, for tests."""

from pathlib import Path

from align.config.infrastructure import StoreConfig


def config(root: Path, objects: str | None = "objects") -> StoreConfig:
    """Section `store`, with everything below a folder."""
    return StoreConfig(
        objects=str(root / objects) if objects else None, checkpoints=None, work=None, cache=root / "cache",
        part_size_mb=5, num_connections=2, num_retries=0, timeout_s=60.0, features=None,
    )  # fmt: skip


def touch(root: Path, *names: str) -> None:
    """Makes files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
