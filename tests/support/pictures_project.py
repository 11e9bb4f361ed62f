"""A checkout with git and DVC over nine pictures with a table of captions; its pipeline is the test's."""

import shutil

from align.config.params import write_params
from align.services.git import git
from tests.support import ROOT
from tests.support.dvc_projects import commit_all
from tests.support.params import PARAMS_FILE
from tests.support.small_data import jpeg

NUM_PICTURES = 9
#: The project's stages use this checkout's code.
CODE = {"PYTHONPATH": str(ROOT)}
PARAMS = {
    "paths.archive": "pictures", "paths.evaluation": "no-sets", "ingest.source": "folder", "ingest.shard_size": 3,
    "engine.num_workers": 1,
}  # fmt: skip
#: The head of its dvc.yaml: the real ingest and filter. The test adds the later stages.
INGEST_AND_FILTER = """\
stages:
  ingest: {cmd: align ingest, deps: [pictures], params: [ingest], outs: [data/raw, reports/ingest]}
  filter:
    cmd: align filter
    deps: [data/raw, data/policy/opted_out.csv]
    params: [filter]
    outs: [data/filtered, reports/filter]
"""


def write(root, model, files, pages=""):
    """Makes the checkout, committed; `files` are dvc.yaml and the programs of its stages.

    If `pages` is an address, each three of the pictures are of a page there.
    """
    (root / "pictures").mkdir(parents=True)
    lines = ["file,caption,page" if pages else "file,caption"]
    for number in sorted(range(NUM_PICTURES), key=lambda number: (number % 3, number)):
        (root / f"pictures/{number}.jpg").write_bytes(jpeg(number))
        page = f",{pages}{number % 3}.html" if pages else ""
        lines.append(f"{number}.jpg,picture number {number} of a red fox{page}")
    (root / "pictures/captions.csv").write_text("\n".join(lines) + "\n")
    (root / "no-sets").mkdir()
    (root / "no-sets/.gitkeep").touch()
    git(root.parent, "init", "--quiet", "--initial-branch", "main", str(root))
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copy(PARAMS_FILE, root)
    columns = {"ingest.columns.page_url": "page"} if pages else {}
    write_params(root / "params.yaml", PARAMS | columns | {"register.model_name": model})
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "data/policy").mkdir(parents=True)
    (root / "data/policy/opted_out.csv").write_text("kind,value,reason,added\n")
    commit_all(root)
    return root
