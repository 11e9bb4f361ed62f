"""A clone of this checkout whose pipeline takes a minute or two: a reduced sample, a small model."""

import shutil

from align.config.params import write_params
from align.services.git import git
from tests.support import ROOT, thinned
from tests.support.dvc_projects import commit_all
from tests.support.params import PARAMS_FILE

#: Small enough for a minute or two, long enough for the model to know its hundred images by heart. Of so little work a
#: further process has but its imports; one flag of a hundred pairs is one in a hundred.
REDUCED = {
    "engine.num_workers": 1, "ingest.max_pages": 10, "validate.min_evaluation_sets": 1,
    "validate.max_evaluation_hash_share": 0.05, "shard.image_px": 36, "model.resize_px": 36, "model.image_px": 32,
    "model.image_tower.width_coefficient": 0.25, "model.image_tower.depth_coefficient": 0.25,
    "model.text_tower.width": 64, "model.text_tower.layers": 1, "model.text_tower.heads": 2,
    "pretrain.num_steps": 150, "pretrain.num_processes": 1, "pretrain.num_threads": 1, "finetune.num_processes": 1,
    "finetune.num_threads": 1, "pretrain.batch_size": 32, "pretrain.warmup_steps": 10, "pretrain.flip": False,
    "pretrain.validate_every_steps": 150, "finetune.num_steps": 10, "finetune.batch_size": 32, "finetune.flip": False,
    "evaluate.num_resamples": 100,
}  # fmt: skip


def write(root):
    """This checkout's files as they stand, in a repository of their own, with an eighth of one evaluation set."""
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    evaluation = root / "data/sample/evaluation"
    for path in evaluation.iterdir():
        if path.stem != "classes":
            path.unlink()
    thinned.write(evaluation / "classes.json", evaluation, lambda number, key: number % 8 == 0)
    shutil.copy(PARAMS_FILE, root / "params.yaml")
    write_params(root / "params.yaml", REDUCED)
    git(root, "init", "--quiet")
    commit_all(root, "reduced")
    return root
