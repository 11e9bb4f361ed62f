"""A checkout with git and DVC over three saved pages with nine pictures; its pipeline is the test's."""

import shutil
from pathlib import Path
from typing import Any

from align.config.params import write_params
from align.services.git import git
from tests.support import ROOT
from tests.support.dvc_projects import commit_all
from tests.support.params import PARAMS_FILE
from tests.support.small_data import jpeg

NUM_PICTURES = 9
#: The project's stages use this checkout's code.
CODE = {"PYTHONPATH": str(ROOT)}
PARAMS: dict[str, Any] = {
    "paths.archive": "pages", "paths.evaluation": "no-sets", "ingest.source": "html", "ingest.shard_size": 3,
    "engine.num_workers": 1,
}  # fmt: skip
#: The head of its dvc.yaml: the real ingest and filter. The test adds the later stages.
INGEST_AND_FILTER = """\
stages:
  ingest: {cmd: align ingest, deps: [pages], params: [ingest], outs: [data/raw, reports/ingest]}
  filter:
    cmd: align filter
    deps: [data/raw, data/policy/opted_out.csv]
    params: [filter]
    outs: [data/filtered, reports/filter]
"""


def write(root: Path, model: str, files: dict[str, str], saved_from: str = "") -> Path:
    """Makes the checkout, committed; `files` are dvc.yaml and the programs of its stages, and the pages state that they
    were saved from addresses in `saved_from`, if any.
    """
    (root / "pages").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        (root / f"pages/{number}.jpg").write_bytes(jpeg(number))
    for page in range(3):
        images = (
            f'<img src="{number}.jpg" alt="picture number {number} of a red fox">'
            for number in range(NUM_PICTURES)
            if number % 3 == page
        )
        stated = f"<!-- saved from url=(0040){saved_from}{page}.html -->" if saved_from else ""
        (root / f"pages/{page}.html").write_text(f"{stated}<html><body>{''.join(images)}</body></html>")
    (root / "no-sets").mkdir()
    (root / "no-sets/.gitkeep").touch()
    git(root.parent, "init", "--quiet", "--initial-branch", "main", str(root))
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copy(PARAMS_FILE, root)
    write_params(root / "params.yaml", PARAMS | {"register.model_name": model})
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "data/policy").mkdir(parents=True)
    (root / "data/policy/opted_out.csv").write_text("kind,value,reason,added\n")
    commit_all(root)
    return root
