"""Versions whose files are empty, with everything that a promotion reads of them: ranks, tags, digest."""

from align.durable.files import sha256_folder
from align.formats.query_ranks import RANKS, QueryRanks, write_ranks
from tests.support.registered import ranks


def version(tracker, root, measured, model="align"):
    """A registered version whose run has measured this: a recall, or ranks."""
    run_id = tracker.start_run("align", "x")
    (root / "evaluation").mkdir(exist_ok=True)
    write_ranks(measured if isinstance(measured, QueryRanks) else ranks(measured), root / "evaluation" / RANKS)
    tracker.log_folder(run_id, root / "evaluation", "reports/evaluation")
    (root / "model").mkdir(exist_ok=True)
    (root / "model" / "MLmodel").write_text("flavors: {}")
    tracker.log_folder(run_id, root / "model", "model")
    digest = sha256_folder(root / "model")
    tags = {"align.data_digest": "d" * 64, "align.model_digest": digest, "align.git_revision": "0123abc"}
    tags |= {"align.quality": "passed"}
    made = tracker.registry.create_version(model, run_id, "model", tags)
    tracker.registry.set_alias(made, "candidate")
    tracker.end_run(run_id)
    return made
