"""A store in a folder, and files in it, for tests."""

from align.config.infrastructure import StoreConfig


def config(root, folder="objects", **changes):
    """Section `store`, with everything below a folder but what is changed."""
    values = {
        "objects": str(root / folder) if folder else None, "checkpoints": None, "work": None, "cache": root / "cache",
        "num_retries": 0, "timeout_s": 60.0, "features": None,
    }  # fmt: skip
    return StoreConfig.model_validate(values | changes)


def touch(root, *names):
    """Makes files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
