"""Arguments of the stages of dvc.yaml."""

from __future__ import annotations

from argparse import ArgumentParser, _ActionsContainer
from pathlib import Path

#: Where `align index --source` writes.
CATALOGUE = Path("catalogue/index")


def validate(parser: ArgumentParser) -> None:
    """Arguments of `align validate`: decisions about the last run, instead of a run."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--accept", metavar="NAMES", help="accept failed expectations of the last run, for its data; A,B,C or one name"
    )
    group.add_argument("--set-reference", action="store_true", help="measure drift from the data of the last run")
    parser.add_argument("--reason", default="", help="why, with --accept")
    parser.add_argument(
        "--from",
        dest="reports",
        type=Path,
        metavar="FOLDER",
        help="with --accept: the reports of a failed run, such as .align/worktrees/KEY/reports; default: paths.reports",
    )
    parser.add_argument("--by", default=None, help="who decides; default: git's user")


def checkpoint(parser: _ActionsContainer) -> None:
    """The argument that names a checkpoint in place of a model folder."""
    parser.add_argument(
        "--checkpoint",
        metavar="[STAGE:]STEP",
        help="take the checkpoint of a training run as the model, also while it trains: 400, best or last of finetune, "
        "pretrain:best",
    )


def data(parser: ArgumentParser) -> None:
    """The argument for tars that others made; the only one of `align fit_tokenizer`."""
    parser.add_argument(
        "--data", action="append", default=[], metavar="SPEC[=WEIGHT]",
        help="read these tars of webdataset or img2dataset as they are, instead of data/shards, without a gate: a "
        "path or s3://..., such as 'tars/{00000..00331}.tar', 'tars/*.tar', or a folder; may be repeated",
    )  # fmt: skip


def train(parser: ArgumentParser) -> None:
    """Arguments of `align pretrain` and `align finetune`."""
    data(parser)
    parser.add_argument(
        "--accept-code-change",
        metavar="WHY",
        help="resume a run of the same parameters and data that began under other code; WHY says why the result is "
        "the same",
    )


def evaluate(parser: ArgumentParser) -> None:
    """Arguments of `align evaluate`."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="measure this model folder, ours or one of transformers (CLIP, SigLIP, ALIGN) or open_clip, instead of "
        "the fine-tuned model; --reports says where to. With --log also an alias, or models:/NAME/NUMBER, of MLflow",
    )
    checkpoint(one)
    parser.add_argument(
        "--reports",
        type=Path,
        metavar="DIR",
        help="write the report there, and nothing else but embeddings (store.features) and fine-tuning's checkpoints",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="measure two model folders on the sets of paths.evaluation (if there are none, on the pairs held out), "
        "and say by which metrics they differ",
    )
    parser.add_argument(
        "--log",
        nargs="?",
        const="",
        metavar="NAME",
        help="with --model: the result is a run in MLflow of this name, below the run that made the version",
    )


def given_model(parser: ArgumentParser) -> None:
    """The argument that names a model of another place than `paths.finetuned`."""
    what = "a model folder, ours or one of transformers or open_clip; an alias, or models:/NAME@ALIAS, of MLflow"
    parser.add_argument("--model", metavar="DIR|ALIAS", help=f"{what}; default: paths.finetuned")


def index(parser: ArgumentParser) -> None:
    """Arguments of `align index`: another source than the shards."""
    parser.add_argument(
        "--source",
        nargs="?",
        const="",
        metavar="PATH",
        help="index a folder of pictures, or a table of them (.csv, .parquet, ...) with its columns, not the shards; "
        "without PATH: paths.archive",
    )
    given_model(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"with --source: the index; default: {CATALOGUE}")
    parser.add_argument("--update", action="store_true", help="with --source: embed only pictures new to the index")
