"""What `align forget` prints: the models that saw the pairs, what a purge would remove, and what it removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from align.lineage.purge import PurgeResult
from align.lineage.purge_plan import PurgePlan
from align.lineage.trained_models import TrainedModel


def model_lines(models: Iterable[TrainedModel]) -> Iterator[str]:
    """One line per registered version: how many of the pairs it saw, and where that is known from."""
    for model in models:
        aliases = f" ({', '.join(model.aliases)})" if model.aliases else ""
        if model.seen is None:
            what = "unknown"
        else:
            num_trained = model.seen.get("train", 0)
            num_held_out = sum(model.seen.values()) - num_trained
            what = f"trained on {num_trained:,} of the pairs"
            what += f", measured on {num_held_out:,}" if num_held_out else ""
        yield f"{model.version.name} version {model.version.number}{aliases}: {what}; {model.why}"


def plan_lines(plan: PurgePlan, raw: str, remotes: Iterable[str]) -> Iterator[str]:
    """What a purge would remove."""
    yield f"to go: {len(plan.pairs.gone):,} pictures of {raw}"
    for (path, md5), why in sorted(plan.doomed.versions.items()):
        yield f"to go: {path} {md5[:8]} ({why})"
    num_objects = len(plan.doomed.to_remove())
    yield f"to go: at most {num_objects:,} objects of DVC's cache and of each remote ({', '.join(remotes) or 'none'})"


def result_line(result: PurgeResult) -> str:
    """What was removed from one place, and what is left there."""
    return f"{result.where}: {result.removed}" + (f"; LEFT: {result.left}" if result.left else "")
