"""`align evaluate --log`: measures a model apart from the pipeline; the result is a run in MLflow.

The run is a child of the run that registered the model, if a version is named. It is made once everything is measured,
so what is stopped leaves none, and embeddings are kept in `store.features`: the next one embeds only what is missing.

It joins evaluation and registration, so it is above both: `align.cli` calls it in place of the verb's own module.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.params import flattened
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.config.suite import is_suite, read_suite
from align.display.console import say, show
from align.display.visible import visible
from align.durable.files import replace_directory, sha256_file, sha256_folder
from align.errors import AlignError, ConfigError, without_logins
from align.evaluate import evaluate
from align.formats.model_folder import model_digest, require_model
from align.local_stack import running_services
from align.release.registration.shown import headline, log_report, tables
from align.search.given_model import given_model, given_version
from align.services.git import git_if_any
from align.services.tracking.address import current_flow_run_id, who_acts
from align.services.tracking.tracker import EVALUATION, FLOW_RUN, PARENT, SOURCE, Tracker

#: Below the working directory: the reports that MLflow did not take, a folder for each model and suite.
KEPT = Path(".align/evaluations")
_MAX_NAME = 200


def main(params: Params, args: argparse.Namespace) -> None:
    """`align evaluate --model MODEL --log [NAME]`.

    Raises:
        ConfigError: no model is named, or two; or a folder for the report is named.
        AlignError: there is no such model or suite, MLflow is unavailable, or `align evaluate` fails.
    """
    if args.model is None or args.checkpoint is not None or args.compare is not None:
        raise ConfigError("--log: name the model by --model: a folder, or an alias or models:/NAME/NUMBER of MLflow")
    if args.reports is not None:
        raise ConfigError("--log: MLflow gets the report; leave --reports out")
    version, sets = given_version(str(args.model), params), params.section(PathsConfig).evaluation
    called = f"{version.name} version {version.number}" if version else str(args.model)
    # by its number: an alias may move
    args.model = given_model(f"models:/{version.name}/{version.number}" if version else called, params)
    require_model(args.model)
    if is_suite(sets):
        read_suite(sets)  # a wrong one ends this at once
    model, suite = model_digest(args.model), sha256_file(sets) if is_suite(sets) else sha256_folder(sets)
    say(f"evaluate: {called}, in {'its run' if version else 'a run of its own'}")
    with TemporaryDirectory(prefix="align-") as scratch:
        args.reports = Path(scratch) / "evaluation"
        evaluate.main(params, args)
        known = {
            "model": visible(called), "model_digest": model, "suite": visible(str(sets)), "suite_digest": suite,
        } | flattened({EvaluateConfig.section: params.values[EvaluateConfig.section]})  # fmt: skip
        name = visible(without_logins(args.log.strip()) or f"{called} on {sets}")[:_MAX_NAME]
        try:
            show(f"{name}: {_logged(params, version.run_id if version else None, name, args.reports, known)}")
        except AlignError as error:
            kept = KEPT / f"{model[:16]}-{suite[:16]}"
            with replace_directory(kept, "evaluate") as part:
                shutil.copytree(args.reports, part / "evaluation")
            raise type(error)(f"{error}; the report was made, and is kept in {kept}") from None


def _logged(params: Params, parent: str | None, name: str, report: Path, known: Mapping[str, object]) -> str:
    """Logs an evaluation as `align register` logs that of a pipeline: metrics, tables, pictures, the report's files.

    Returns:
        How much was measured, and where it is.
    """
    tracker = Tracker()
    measured = json.loads((report / "report.json").read_bytes())
    digests = {f"set.{name}": of["digest"] for name, of in measured["sets"].items()}
    tags = {
        PARENT: parent, FLOW_RUN: current_flow_run_id(), "mlflow.user": who_acts(),
        SOURCE: EVALUATION, "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": (git_if_any(Path(), "rev-parse", "HEAD") or "").strip(),
    }  # fmt: skip
    experiment = params.section(RegisterConfig).experiment
    run = tracker.start_run(experiment, name, tags={key: value for key, value in tags.items() if value})
    try:
        tracker.log_params(run, {**known, **digests, "sets": measured["evaluation_digest"]})
        log_report(tracker, run, report, headline(params.values))
        tracker.log_tables(run, tables([report]))
    except BaseException:
        tracker.end_run(run, status="FAILED")
        raise
    tracker.end_run(run)
    page = tracker.page(run, running_services(Path()).get("mlflow", {}).get("url"))
    return f"{len(json.loads((report / 'metrics.json').read_bytes())):,} figures, in MLflow's run {page or run}"
