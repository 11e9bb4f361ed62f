"""A working directory in which `align pretrain` runs on small data."""

import sys

from ruamel.yaml import YAML

from align.formats.shards import read_manifest
from tests.support.params import PARAMS_FILE
from tests.support.small_data import write_verdict
from tests.support.training_data import MODEL


def write_project(root, data, recipe):
    """Writes a params.yaml over the shards and tokenizer of `data`; returns the command that pre-trains with it."""
    yaml = YAML()
    values = yaml.load(PARAMS_FILE)
    values["model"] = MODEL.model_dump(mode="json")
    values["pretrain"] = recipe
    values["paths"] |= {"shards": str(data[0]), "tokenizer": str(data[1])}
    yaml.dump(values, root / "params.yaml")
    write_verdict(root / "reports/quality_shards", passed=True, data=read_manifest(data[0]).digest)
    return [sys.executable, "-m", "align.cli", "pretrain"]
