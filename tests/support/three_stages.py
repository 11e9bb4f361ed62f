"""A project of three stages, each of which copies what it reads and writes a report."""

from tests.support.dvc_projects import make_repository
from tests.support.params import PARAMS_FILE

#: sh stage.sh NAME OUT INPUT
_STAGE = """\
mkdir -p $2 reports/$1
cat $3 > $2/table
echo "{\\"$1/num_pairs\\": 7}" > reports/$1/metrics.json
"""
DVC_YAML = """\
stages:
  ingest:
    cmd: sh stage.sh ingest data/raw source.txt
    deps: [source.txt]
    params: [ingest]
    outs: [data/raw, reports/ingest]
    meta: {flow: data}
  filter:
    cmd: sh stage.sh filter data/filtered data/raw/table
    deps: [data/raw, reports/ingest/metrics.json]
    params: [filter]
    outs: [data/filtered, reports/filter]
    meta: {flow: data}
  index:
    cmd: sh stage.sh index data/index data/filtered/table
    deps: [data/filtered]
    params: [index]
    outs: [data/index, reports/index]
    meta: {flow: release}
"""


def write(root):
    """A repository of them; no stage has run."""
    texts = {"dvc.yaml": DVC_YAML, "params.yaml": PARAMS_FILE.read_text("utf-8"), "source.txt": "pairs\n"}
    return make_repository(root, texts | {"stage.sh": _STAGE}, "")
