"""Parameters for tests: a copy of params.yaml with fixed values, so that a user's own values fail no test."""

from pathlib import Path

from align import config

PARAMS_FILE = Path(__file__).with_name("params.yaml")


def sets(*values):
    """The arguments that set these values, such as `filter.min_words=4`."""
    return [word for value in values for word in ("--set", str(value))]


def at(root, *names):
    """Values that put folders of section `paths` below one, under their own names."""
    return [f"paths.{name}={root / name}" for name in names]


def load_params(path=None, overrides=()):
    """`align.config.load_params`, by default of the tests' values."""
    return config.load_params(path or PARAMS_FILE, overrides)
