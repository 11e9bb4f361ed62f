"""The stages and commands of ALIGN, in pipeline order.

A verb is a module of that name in the folder of its stage, with `main(params, args)` and, where it takes arguments of
its own, `add_arguments(parser)`. A module is imported when its verb is called: help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Verb(NamedTuple):
    """The module of a verb, and its line in the help."""

    module: str
    help: str


#: The stages of dvc.yaml, in pipeline order.
STAGES = {
    "ingest": Verb("align.ingest.ingest", "web archive -> data/raw in img2dataset's layout"),
    "filter": Verb("align.filter.filter", "every rule of the paper -> data/filtered/decisions.parquet"),
    "validate": Verb("align.validate.validate", "the quality gate over tables and decisions"),
    "shard": Verb("align.shard.shard", "kept pairs -> data/shards/{train,val,test}"),
    "validate_shards": Verb("align.validate.validate_shards", "the quality gate over the shards"),
    "fit_tokenizer": Verb("align.training.fit_tokenizer", "WordPiece vocabulary from the kept training texts"),
    "pretrain": Verb("align.training.pretrain", "train the dual encoder from scratch"),
    "finetune": Verb("align.training.finetune", "retrieval fine-tuning from the pre-trained checkpoint"),
    "evaluate": Verb("align.evaluate.evaluate", "retrieval, zero-shot and kNN on the evaluation sets"),
    "package": Verb("align.release.package", "a deterministic MLflow model folder"),
    "index": Verb("align.search.index", "embeddings of all kept images, for search"),
}

#: Commands: not in the DAG.
COMMANDS = {
    "run": Verb("align.run", "the whole pipeline under Prefect, kept as branch run/<name>"),
    "register": Verb("align.release.register", "complete the MLflow run and register the packaged model"),
    "promote": Verb("align.release.promote", "candidate -> champion, if the metrics say so"),
    "rollback": Verb("align.release.rollback", "champion -> the previous champion"),
    "search": Verb("align.search.search", "search the index by text, image, image + text or image - text"),
    "embed": Verb("align.search.embed", "images, texts or a parquet column -> parquet of embeddings"),
    "export": Verb("align.release.export", "a model for transformers, onnxruntime or torch, checked against ours"),
    "import_model": Verb(
        "align.release.import_model", "a folder of transformers.AlignModel -> a model folder like ours"
    ),
    "explain": Verb("align.lineage.explain", "everything known of one pair: page, rules, shard, models trained on it"),
    "forget": Verb("align.lineage.forget", "take-downs: record what people ask to forget, and purge its bytes"),
    "diff": Verb("align.lineage.diff", "two versions of the data: what entered, what left, why, and how they differ"),
}

VERBS = STAGES | COMMANDS


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser with every verb; only the named verb's module is imported to add its arguments."""
    parser = argparse.ArgumentParser(
        prog="align", description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for name, (module, help_text) in VERBS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        sub.add_argument("--params", type=Path, default=None, metavar="FILE", help="default: ./params.yaml")
        sub.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
            help="override one parameter for this run; may be repeated",
        )  # fmt: skip
        if name == verb:
            add_arguments = getattr(importlib.import_module(module), "add_arguments", None)
            if add_arguments:
                add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 1 after an AlignError (one line on stderr), or 130 after Ctrl-C."""
    from align.errors import AlignError

    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in argv if word in VERBS), None)
    try:
        args = build_parser(verb if argv and argv[0] == verb else None).parse_args(argv)
        silence_telemetry()
        from align.config import load_params

        params = load_params(args.params, args.overrides)
        importlib.import_module(VERBS[args.verb].module).main(params, args)
    except AlignError as error:
        print(f"align: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"align: error: the disk is full ({error.filename or 'while writing'}); free room and run again",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("align: interrupted", file=sys.stderr)
        return 130
    return 0


def silence_telemetry() -> None:
    """Turns the telemetry of every library off, before any of them is imported."""
    for name, value in {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DVC_NO_ANALYTICS": "1",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
