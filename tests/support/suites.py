"""Suites for tests: the readers with local files."""

from ruamel.yaml import YAML

from align.config.infrastructure import StoreConfig
from align.formats.evaluation_sets.named import named_sets
from align.services.files.files import StoreFiles
from tests.support.params import load_params


def suite(folder, *sets):
    """A suite of these entries."""
    path = folder / "suite.yaml"
    YAML().dump({"sets": list(sets)}, path)
    return path


def local_files():
    """Reads files of this machine."""
    return StoreFiles(load_params().section(StoreConfig))


def read(folder, path, kind, *tasks, **more):
    """The set at a path, by a suite of its own."""
    entry = {"name": "one", "path": str(path), "format": kind, "tasks": list(tasks), **more}
    (one,) = named_sets(suite(folder, entry), local_files())
    return one
