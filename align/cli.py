"""The stages of ALIGN in pipeline order, then the commands.

A verb is a module of that name in the folder of its stage, with `main(params, args)` and, if it takes arguments of its
own, `add_arguments(parser)`. A module is imported only when its verb is called, so that help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Verb(NamedTuple):
    """A verb's module, and its line in the help."""

    module: str
    help: str


#: The stages of dvc.yaml, in pipeline order.
STAGES = {
    "ingest": Verb("align.ingest.ingest", "read a web archive or a table of addresses into data/raw"),
    "filter": Verb("align.filter.filter", "apply every rule of the paper; writes data/filtered/decisions.parquet"),
    "validate": Verb("align.validate.validate", "check tables and decisions: the quality gate before sharding"),
    "shard": Verb("align.shard.shard", "write the kept pairs as tars: data/shards/{train,val,test}"),
    "validate_shards": Verb("align.validate.validate_shards", "check the shards: the quality gate before training"),
    "fit_tokenizer": Verb("align.training.fit_tokenizer", "learn a WordPiece vocabulary from the training texts"),
    "pretrain": Verb("align.training.pretrain", "train the dual encoder from scratch"),
    "finetune": Verb("align.training.finetune", "fine-tune the pre-trained model for retrieval"),
    "evaluate": Verb("align.evaluate.evaluate", "measure retrieval, zero-shot accuracy and kNN on the evaluation sets"),
    "package": Verb("align.release.package", "write the model as an MLflow model folder"),
    "index": Verb("align.search.index", "embed all kept images, for search"),
}

#: The commands, which are not in the DAG.
COMMANDS = {
    "run": Verb("align.run", "run the whole pipeline under Prefect, and record it as branch run/<name>"),
    "register": Verb("align.release.register", "complete the MLflow run and register the packaged model"),
    "promote": Verb("align.release.promote", "make the candidate the champion, if its metrics suffice"),
    "rollback": Verb("align.release.rollback", "make the previous champion the champion again"),
    "search": Verb("align.search.search", "search the indexed images by text, image, image + text or image - text"),
    "embed": Verb("align.search.embed", "write embeddings of images, texts or a parquet column to a parquet file"),
    "export": Verb(
        "align.release.export", "export a model for transformers, onnxruntime or torch, and check it against ours"
    ),
    "import_model": Verb(
        "align.release.import_model", "import a folder of transformers.AlignModel as a model folder like ours"
    ),
    "explain": Verb("align.lineage.explain", "show what is known of a pair: page, rules, shard, models trained on it"),
    "forget": Verb("align.lineage.forget", "take-downs: record what people ask to forget; --purge removes the bytes"),
    "diff": Verb("align.lineage.diff", "compare two versions of the data: which pairs entered and left, and why"),
}

VERBS = STAGES | COMMANDS

_OTHER_PATH = "or choose another path (sections paths and engine of params.yaml)"
#: What a disk refuses, in words.
_REFUSALS = {
    errno.ENOSPC: f"the disk is full; free some space {_OTHER_PATH}, and run again",
    errno.EDQUOT: f"your quota of the disk is used up; free some space {_OTHER_PATH}, and run again",
    errno.EROFS: f"the disk is read-only; mount it for writing, {_OTHER_PATH}",
    errno.EACCES: f"permission denied; change the permissions, {_OTHER_PATH}",
    errno.EPERM: f"operation not permitted; change the owner or the permissions, {_OTHER_PATH}",
}
#: The beginning of Python's message where no folder for temporary files can be written to.
_NO_SCRATCH = "No usable temporary directory"


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser with every verb; only the named verb's module is imported, to add its arguments."""
    parser = argparse.ArgumentParser(
        prog="align", description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for name, (module, help_text) in VERBS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        sub.add_argument("--params", type=Path, default=None, metavar="FILE", help="default: ./params.yaml")
        sub.add_argument(
            "--profile",
            metavar="NAME",
            help="use the values of infra/profiles/NAME.yaml, or of a file; --set changes single ones",
        )
        sub.add_argument(
            "--set",
            dest="overrides",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="use another value for one parameter in this run; may be repeated",
        )
        if name == verb:
            add_arguments = getattr(importlib.import_module(module), "add_arguments", None)
            if add_arguments:
                add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 1 after an AlignError or a refusal of the disk (one line on stderr), or 130 after
    Ctrl-C.
    """
    from align.console import say, say_traceback
    from align.errors import AlignError

    sys.excepthook = say_traceback
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in argv if word in VERBS), None)
    try:
        args = build_parser(verb if argv and argv[0] == verb else None).parse_args(argv)
        silence_telemetry()
        from align.config import load_params
        from align.config.profile import profile_overrides

        args.overrides = [*profile_overrides(args.profile), *args.overrides]
        params = load_params(args.params, args.overrides)
        if args.verb in STAGES:
            from align.declared import require_stage

            require_stage(args.verb, VERBS[args.verb].module, params, under_dvc="DVC_STAGE" in os.environ)
        importlib.import_module(VERBS[args.verb].module).main(params, args)
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except OSError as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        say(f"align: error: {refusal}")
        return 1
    except KeyboardInterrupt:
        say("align: interrupted")
        return 130
    return 0


def _refusal(error: OSError) -> str | None:
    """Why the disk did not do what a command asked, with the path; None for an error that is ours."""
    from align.files import without_temporary_names

    why = _REFUSALS.get(error.errno or 0)
    quoted = re.search("'(.+)'", str(error.strerror))  # Arrow names the file there
    named = error.filename or (quoted and quoted[1])
    path = without_temporary_names(Path(os.fsdecode(named))) if isinstance(named, (str, bytes)) else named
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path or 'while writing'}: {why}"
    if error.errno == errno.ENOENT and str(error.filename or error.strerror).startswith(_NO_SCRATCH):
        return "no folder for temporary files can be written to; set TMPDIR to one that can"
    return f"{path}: {why}" if why and path else None


def silence_telemetry() -> None:
    """Turns off the telemetry of every library; called before any of them is imported."""
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
