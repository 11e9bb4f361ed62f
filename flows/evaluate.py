"""Evaluation as a flow: measures a model on the sets of a suite, apart from the pipeline, as a run in MLflow.

The work is that of `align evaluate`, in a child process. Its report is made in a temporary folder, and MLflow keeps it.
Embeddings are kept in `store.features`, so after a stopped run the next one embeds only what is missing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger, runtime
from pydantic import Field

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.config.params import flattened
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.config.suite import is_suite, read_suite
from align.display.visible import visible
from align.durable.files import replace_directory, sha256_file, write_text
from align.errors import AlignError, ConfigError, DataError, without_logins
from align.formats.evaluation_sets.files import text_of
from align.formats.model_folder import model_digest
from align.release.promotion.measured import AskedModel, asked_model, inside, log_evaluation
from align.release.registration.shown import headline, measured
from align.services.files.files import StoreFiles
from align.services.tracking.tracker import PARENT, Tracker
from flows.checkout.failed_runs import MADE_BY, folder_for
from flows.mlflow_run import MlflowRun, opened_run
from flows.pages.progress import put_markdown, run_page
from flows.request import NO_LOGIN
from flows.tasks.command_task import command
from flows.tasks.run_context import RunContext
from flows.tasks.this_run import end_record, in_progress

SUITES = Path("infra/suites")
#: Metrics that the summary shows; MLflow has all.
MAIN = ("/recall@1", "/recall@10", "/accuracy", "/sts", "/sis", "/sits", "mean_recall")
_MAX_NAME, _MAX_WORDS = 200, 1000
_Words = Field(min_length=1, max_length=_MAX_WORDS, json_schema_extra={"pattern": r"\S", **NO_LOGIN})


@flow(flow_run_name="evaluate", on_completion=[end_record], on_failure=[end_record])
def evaluate(
    suite: Annotated[str, _Words] = "demo",
    model: Annotated[str, _Words] = "champion",
    name: Annotated[str, Field(max_length=_MAX_NAME, json_schema_extra=NO_LOGIN)] = "",
) -> str:
    """Measures a model on the sets of a suite; the result is a run in MLflow, below the run that made the model.

    Args:
        suite: the sets and what is measured on them: a name of infra/suites, or a YAML file of the checkout or in S3.
        model: a registered version, by its number or alias; or a folder of the checkout, such as models/finetuned.
        name: of the run in MLflow; empty: the model and the suite.

    Returns:
        What was measured, in a sentence.

    Raises:
        AlignError: there is no such model or suite, MLflow is unavailable, or `align evaluate` failed.
    """
    root = Path.cwd()
    with in_progress(name) as record, tempfile.TemporaryDirectory(prefix="align-") as folder:
        scratch, run = Path(folder), RunContext(root=root, checkout=root, attempt=record.attempt_id)
        params = run.params
        file = suite_file(suite, root, params, scratch)
        (scratch / "model").mkdir()
        found = asked_model(
            model, root, Tracker(run.mlflow_tracking_uri),
            registered=params.section(RegisterConfig).model_name,
            packaged=root / params.section(PathsConfig).packaged, scratch=scratch / "model",
        )  # fmt: skip
        shown = f"{found.name} on {without_logins(suite.strip())}"
        called = visible(without_logins(name.strip()) or shown)[:_MAX_NAME]
        known = _known(params, found, suite, file)
        tags = {PARENT: found.parent} if found.parent else {}
        with opened_run(run, params.section(RegisterConfig).experiment, called, known, tags) as opened:
            _measure(found, file, scratch, called, opened)
            metrics = _logged(root, opened, scratch / "reports", known, called, headline(params.values))
        text = summary(called, shown, metrics, opened.page)
        put_markdown("summary", visible(shown), text)
        return f"{visible(shown)}: {len(metrics):,} figures, in MLflow's run {opened.run_id}"


def suite_file(asked: str, root: Path, params: Params, scratch: Path) -> Path:
    """The file of a suite that a form names (of infra/suites, in the checkout, or in S3: then a copy), checked.

    Raises:
        ConfigError: it is not a suite; the message names the key that is wrong.
        DataError: there is no such file.
        ServiceError: the store is unavailable.
    """
    asked = asked.strip()
    if not is_suite(Path(asked)) and "/" not in asked:
        names = sorted(path.stem for path in (root / SUITES).glob("*.yaml"))
        if asked not in names:
            raise DataError(
                f"suite {asked[:100]}: no such name in {SUITES} (there: {', '.join(names) or 'none'}); give one, or a "
                "YAML file of the checkout or in S3"
            )
        file = root / SUITES / f"{asked}.yaml"
    elif not is_suite(Path(asked)):
        raise DataError(f"suite {asked[:100]}: not the name of a YAML file; docs/own-data.md says how to write a suite")
    elif asked.startswith("s3://"):
        file = scratch / "suite.yaml"
        write_text(file, text_of(StoreFiles(params.section(StoreConfig)), asked, "the suite"))
    elif not (file := inside(root, asked)).is_file():
        raise DataError(f"suite {asked[:100]}: no such file in the checkout")
    try:
        read_suite(file)
    except ConfigError as error:  # under the name that was asked for
        raise ConfigError(str(error).replace(str(file), asked[:100])) from None
    return file


def summary(name: str, measured_what: str, metrics: Mapping[str, float], page: str | None) -> str:
    """The main figures as markdown; `page` is the address of the run's page in MLflow, if a server shows it."""
    parts = [f"**{_plain(name)}**: {_plain(measured_what)}"]
    parts += [f"[figures, tables, pictures and the report in MLflow]({page})"] if page else []
    rows = ["| metric | value | 95 % interval | by chance |", "|---|---:|---|---:|"]
    for one, metric, value, low, high, chance in measured(metrics):
        if f"/{metric}".endswith(MAIN):
            cells = f"{value:.1%} | {low:.1%} to {high:.1%} | {'' if chance is None else f'{chance:.1%}'}"
            rows.append(f"| {_plain(f'{one}/{metric}')} | {cells} |")
    return "\n\n".join([*parts, "\n".join(rows)])


def _measure(found: AskedModel, file: Path, scratch: Path, called: str, opened: MlflowRun) -> None:
    """Runs `align evaluate`, with its lines in the log, and its progress on the run's page."""
    progress = scratch / "progress.json"
    with run_page(called) as page:
        page.links["MLflow"] = opened.page or f"run {opened.run_id} in mlflow.db; `make up` shows it"
        page.watch(progress, ())
        suite = json.dumps(str(file), ensure_ascii=False)
        arguments = (
            f"--model={found.folder}",
            f"--set=paths.evaluation={suite}",
            f"--reports={scratch}/reports/evaluation",
        )
        command("evaluate", arguments, progress)


def _logged(
    root: Path, opened: MlflowRun, reports: Path, known: Mapping[str, object], called: str, shown: Sequence[str]
) -> dict[str, float]:
    """Logs the report; if MLflow does not take it, keeps it in .align/failed, and the error says so."""
    try:
        return log_evaluation(opened.tracker, opened.run_id, reports, known, shown)
    except AlignError as error:
        kept = folder_for(root, called, runtime.flow_run.id)
        with replace_directory(kept, MADE_BY) as part:
            (reports).rename(part / "reports")
        where = kept.relative_to(root) / "reports/evaluation"
        raise type(error)(f"{error}; the report was made, and is kept in {where}") from None


def _known(params: Params, found: AskedModel, suite: str, file: Path) -> dict[str, object]:
    """The parameters of the run in MLflow, known from its first second on."""
    get_run_logger().info("measuring %s, in %s", found.name, "its run" if found.parent else "a run of its own")
    named = {
        "model": visible(found.name), "model_digest": model_digest(found.folder),
        "suite": visible(without_logins(suite.strip())), "suite_digest": sha256_file(file),
    }  # fmt: skip
    return {**named, **flattened({EvaluateConfig.section: params.values[EvaluateConfig.section]})}


def _plain(text: str) -> str:
    """A form's text as code, which is safe in a table of markdown, too."""
    return f"`{visible(text).replace('`', chr(39)).replace('|', '/')}`"
