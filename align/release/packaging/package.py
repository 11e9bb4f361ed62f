"""package: the fine-tuned model, its metrics and its code -> models/packaged, an MLflow model.

`mlflow.pyfunc.load_model` reads the folder anywhere, with or without `align` installed. Equal inputs give equal bytes,
so the digest names the model: `align register` makes a new version only for a new digest. The metrics are in
`evaluation.json`. `packaged_model` documents the model's input and output.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from align.config import Params
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.report import Report, record_runtime, write_report
from align.durable.files import replace_directory, sha256_folder
from align.errors import DataError
from align.formats.model_folder import Imported, read_config
from align.model.embedder import Embedder
from align.project.provenance import closure
from align.release.packaging import packaged_model

#: The module that loading a model imports; its import closure is copied into the folder.
_ENTRY = "align.model.embedder"
#: Makes the rest of an installed `align` importable together with the modules in the folder.
_EXTEND_PATH = '\n__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'


class PackageReport(Report):
    """What the packaged model is.

    Attributes:
        digest: names it: sha256 over its files' names and bytes.
        imported, trained_on: see `ModelFolderConfig`.
    """

    digest: str
    imported: Imported | None
    trained_on: tuple[str, ...]


def package(*, model: Path, evaluation: Path, out: Path, reports: Path) -> PackageReport:
    """Writes the model folder and checks that it embeds.

    Args:
        model: models/finetuned.
        evaluation: reports/evaluation, whose metrics.json is copied into the folder.
        out: models/packaged; replaced whole.
        reports: the folder of this stage's report; replaced whole.

    Raises:
        DataError: an input is missing, model and tokenizer do not belong together, or embeddings are not finite.
    """
    metrics = evaluation / "metrics.json"
    if not metrics.is_file():
        raise DataError(f"{metrics}: no such file; run `align evaluate` first")
    embedder = Embedder.load(model)
    with replace_directory(out, "package") as part, tempfile.TemporaryDirectory(prefix="align-package-") as scratch:
        code = Path(scratch) / "align"
        copy_code(code)
        part.rmdir()  # MLflow makes it
        packaged_model.save(
            part,
            model=model,
            code=code,
            metadata={"schema_version": 1, "embed_width": embedder.width},
        )
        shutil.copyfile(metrics, part / "evaluation.json")
        embedding = Embedder.load(part / "artifacts" / model.name).embed_texts(["a red fox"])
        if not np.isfinite(embedding).all():
            raise DataError(f"{model}: the embeddings are not finite; train the model again")
    digest = sha256_folder(out)
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    config = read_config(model)
    report = PackageReport(
        metrics={"package/num_bytes": num_bytes, "package/embed_width": embedder.width},
        digest=digest,
        imported=config.imported,
        trained_on=config.trained_on,
    )
    with replace_directory(reports, "package") as part:
        write_report(report, part)
    return report


def copy_code(target: Path) -> None:
    """Copies only the modules of `align` that loading needs, so that a change elsewhere makes no new model."""
    for name, source in sorted(closure(_ENTRY).items()):
        parts = name.split(".")[1:]
        path = (
            target.joinpath(*parts, "__init__.py")
            if source.name == "__init__.py"
            else target.joinpath(*parts).with_suffix(".py")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        extra = _EXTEND_PATH if source.name == "__init__.py" else ""
        path.write_text(source.read_text(encoding="utf-8") + extra, encoding="utf-8")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align package`."""
    paths = params.section(PathsConfig)
    with record_runtime("package", paths.runtime):
        report = package(
            model=paths.finetuned,
            evaluation=paths.reports / "evaluation",
            out=paths.packaged,
            reports=paths.reports / "package",
        )
    say(f"package: {paths.packaged}, {report.metrics['package/num_bytes'] / 1e6:.1f} MB, digest {report.digest[:12]}")
