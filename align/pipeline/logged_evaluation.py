"""`align evaluate --log`: measures a model apart from the pipeline; the result is a run in MLflow.

The run is a child of the run that made the model, where that is known. It is made once everything is measured, so what
is stopped leaves none, and embeddings are kept in `store.features`: the next one embeds only what is missing.

It joins evaluation and registration, so it is above both: `align.cli` calls it in place of the verb's own module.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.config.params import flattened
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.config.suite import is_suite, read_suite
from align.display.console import say, show
from align.display.visible import visible
from align.durable.files import replace_directory, sha256_file, sha256_folder, write_text
from align.errors import AlignError, ConfigError, DataError, RefusedError, without_logins
from align.evaluate import evaluate
from align.formats.evaluation_sets.files import text_of
from align.formats.model_folder import WEIGHTS, model_digest, require_model, unpacked
from align.pipeline.run import running_services
from align.release.promotion.evidence import model_folder
from align.release.promotion.judge import version_asked
from align.release.registration.shown import headline, log_report, tables
from align.services.files.files import StoreFiles
from align.services.git import git_if_any
from align.services.tracking.address import current_flow_run_id, who_acts
from align.services.tracking.registry import MODEL_DIGEST, Version
from align.services.tracking.tracker import FLOW_RUN, PARENT, Tracker

SUITES = Path("infra/suites")
#: Below the working directory: the reports that MLflow did not take, a folder for each model and suite.
KEPT = Path(".align/evaluations")
#: Written out, so that a long text of a form does not fill the log.
_SHOWN, _MAX_NAME = 100, 200


@dataclass(frozen=True)
class AskedModel:
    """The model that a person names.

    Attributes:
        folder: the model folder.
        name: for people: `align version 7`, or the folder as it was given.
        parent: the MLflow run that made it; None if that is not known.
    """

    folder: Path
    name: str
    parent: str | None


def asked_model(asked: str, tracker: Tracker, *, registered: str, packaged: Path, scratch: Path) -> AskedModel:
    """Finds the model, and fetches it if it is a version.

    Args:
        asked: a folder; or a version's number or alias.
        tracker: MLflow.
        registered: the name of the model that versions are of.
        packaged: models/packaged, which tells whether a folder's model is registered.
        scratch: an empty folder for a version's files.

    Raises:
        DataError, FormatError: there is no such model, or it is damaged; the message is one line.
        ServiceError: MLflow is unavailable or refuses.
    """
    shown = asked if len(asked) <= _SHOWN else f"{asked[:_SHOWN]}…"
    if "/" in asked or Path(asked[:_SHOWN]).is_dir():
        if not Path(asked).is_dir():
            raise DataError(f"model {shown}: no such folder; give one, or a version's number or alias")
        folder = unpacked(Path(asked))
        require_model(folder)
        made = _version_of(folder, packaged, tracker, registered)
        return AskedModel(folder, asked, None if made is None else _run_of(made, tracker))
    if asked.isascii() and asked.isdecimal():
        version: Version | None = version_asked(registered, tracker, int(asked[:18]))
    else:
        version = tracker.registry.version_at(registered, asked)
    if version is None:
        known = ", ".join(sorted(tracker.registry.aliases(registered))) or "no aliases"
        raise DataError(
            f"model {shown}: '{registered}' has {known}, and no such one; give an alias, a number, or a folder, such "
            "as models/finetuned"
        )
    folder = model_folder(tracker.model_files(version, scratch), version)
    require_model(folder)
    return AskedModel(folder, f"{version.name} version {version.number}", _run_of(version, tracker))


def suite_file(asked: str, params: Params, scratch: Path) -> Path:
    """The file of a suite (of infra/suites, another one, or one in S3: then a copy), checked.

    Raises:
        ConfigError: it is not a suite; the message names the key that is wrong.
        DataError: there is no such file.
        ServiceError: the store is unavailable.
    """
    if not is_suite(Path(asked)) and "/" not in asked:
        names = sorted(path.stem for path in SUITES.glob("*.yaml"))
        if asked not in names:
            raise DataError(
                f"suite {asked[:_SHOWN]}: no such name in {SUITES} (there: {', '.join(names) or 'none'}); give one, or "
                "a YAML file, also in S3"
            )
        file = SUITES / f"{asked}.yaml"
    elif not is_suite(Path(asked)):
        raise DataError(
            f"suite {asked[:_SHOWN]}: not the name of a YAML file; docs/own-data.md says how to write a suite"
        )
    elif asked.startswith("s3://"):
        file = scratch / "suite.yaml"
        write_text(file, text_of(StoreFiles(params.section(StoreConfig)), asked, "the suite"))
    else:
        file = Path(asked)
    try:
        read_suite(file)
    except ConfigError as error:  # under the name that was asked for
        raise ConfigError(str(error).replace(str(file), asked[:_SHOWN])) from None
    return file


def main(params: Params, args: argparse.Namespace) -> None:
    """`align evaluate --model MODEL --log [NAME]`.

    Raises:
        ConfigError: no model is named, or two; --log is missing; or a folder for the report is named.
        AlignError: there is no such model or suite, MLflow is unavailable, or `align evaluate` fails.
    """
    if args.model is None or args.checkpoint is not None or args.compare is not None:
        raise ConfigError("--log: name the model by --model: a folder, or a version's number or alias")
    if args.log is None:
        raise ConfigError("--suite goes with --log; without it, --set paths.evaluation=FILE names the sets")
    if args.reports is not None:
        raise ConfigError("--log: MLflow gets the report; leave --reports out")
    config, paths, tracker = params.section(RegisterConfig), params.section(PathsConfig), Tracker()
    with TemporaryDirectory(prefix="align-") as folder:
        scratch = Path(folder)
        (scratch / "model").mkdir()
        found = asked_model(
            str(args.model), tracker, registered=config.model_name, packaged=paths.packaged, scratch=scratch / "model"
        )
        asked = str(args.suite or paths.evaluation).strip()
        sets = suite_file(asked, params, scratch) if args.suite else paths.evaluation
        model, suite = model_digest(found.folder), sha256_folder(sets) if sets.is_dir() else sha256_file(sets)
        say(f"evaluate: {found.name}, in {'its run' if found.parent else 'a run of its own'}")
        args.model, args.reports = found.folder, scratch / "evaluation"
        values = {**params.values, "paths": {**params.values["paths"], "evaluation": str(sets)}}
        evaluate.main(replace(params, values=values), args)
        known = {
            "model": visible(found.name), "model_digest": model,
            "suite": visible(without_logins(asked)), "suite_digest": suite,
        }  # fmt: skip
        known |= flattened({EvaluateConfig.section: params.values[EvaluateConfig.section]})
        name = visible(without_logins(args.log.strip()) or f"{found.name} on {without_logins(asked)}")[:_MAX_NAME]
        try:
            show(f"{name}: {_logged(params, tracker, found.parent, name, args.reports, known)}")
        except AlignError as error:
            kept = KEPT / f"{model[:16]}-{suite[:16]}"
            with replace_directory(kept, "evaluate") as part:
                shutil.copytree(args.reports, part / "evaluation")
            raise type(error)(f"{error}; the report was made, and is kept in {kept}") from None


def _logged(
    params: Params, tracker: Tracker, parent: str | None, name: str, report: Path, known: Mapping[str, object]
) -> str:
    """Logs an evaluation as `align register` logs that of a pipeline: metrics, tables, pictures, the report's files.

    Returns:
        How much was measured, and where it is.
    """
    measured = json.loads((report / "report.json").read_bytes())
    digests = {f"set.{name}": of["digest"] for name, of in measured["sets"].items()}
    tags = {
        PARENT: parent, FLOW_RUN: current_flow_run_id(), "mlflow.user": who_acts(),
        "mlflow.source.name": "align evaluate", "mlflow.source.type": "LOCAL",
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


def _version_of(folder: Path, packaged: Path, tracker: Tracker, registered: str) -> Version | None:
    """The registered version of the model in `packaged`, if that is this folder's model."""
    copies = [path for path in packaged.glob(f"artifacts/*/{WEIGHTS}") if path.is_file()]
    if not (folder / WEIGHTS).is_file() or [sha256_file(copy) for copy in copies] != [sha256_file(folder / WEIGHTS)]:
        return None
    return tracker.registry.find_version(registered, MODEL_DIGEST, sha256_folder(packaged))


def _run_of(version: Version, tracker: Tracker) -> str | None:
    """The version's run, if MLflow still has it."""
    try:
        return tracker.run(version.run_id).run_id if version.run_id else None
    except RefusedError:
        return None
