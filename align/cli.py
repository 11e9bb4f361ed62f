"""The command `align`: reads the verb (`align.verbs`), checks the whole of params, and calls the verb's module.

A verb's module is imported only when its work begins, so that help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from align.verbs import JOURNEYS, STAGES, VERBS, epilog, named

if TYPE_CHECKING:
    from align.config import Params


_OTHER_PATH = "or choose another path (sections paths and engine of params.yaml)"
#: What a disk refuses -> the words for it.
_REFUSALS = {
    errno.ENOSPC: f"the disk is full; free some space {_OTHER_PATH}, and run again",
    errno.EDQUOT: f"your quota of the disk is used up; free some space {_OTHER_PATH}, and run again",
    errno.EROFS: f"the disk is read-only; mount it for writing, {_OTHER_PATH}",
    errno.EACCES: f"permission denied; change the permissions, {_OTHER_PATH}",
    errno.EISDIR: "is a folder; name a file",
    errno.ENOTDIR: "a file is where a folder should be; choose another path",
    errno.EPERM: f"operation not permitted; change the owner or the permissions, {_OTHER_PATH}",
}
#: The beginning of Python's message if no folder for temporary files can be written to.
_NO_SCRATCH = "No usable temporary directory"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors of usage are one line, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        from align.display.console import say

        say(f"align: error: {message}{' See' if message.endswith('?') else '; see'} {self.prog} --help")
        sys.exit(2)


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser with every verb; only the named one has its own arguments."""
    parser = _Parser(
        prog="align",
        usage="align VERB ...",
        description="ALIGN end to end: web pairs in, a trained, registered, searchable dual encoder out.",
        epilog=JOURNEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="verb", required=True, prog="align")
    for name, entry in VERBS.items():
        sub = subparsers.add_parser(
            name,
            help=entry.help,
            description=entry.help,
            epilog=epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
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
        if name == verb and entry.arguments:
            entry.arguments(sub)
    return parser


def read_params(file: Path | None, overrides: Sequence[str], but: str = "") -> Params:
    """The values of a command or a run, as `align.config.load_params` reads them, all of them checked `but` one.

    Raises:
        ConfigError: `load_params` refuses, or a value of any section is wrong (`align.config.checks`).
    """
    from align.config import load_params
    from align.config.checks import require_valid
    from align.filter.rules import RULES

    params = load_params(file, overrides)
    require_valid(params, RULES, but)
    return params


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 1 after a refusal of the disk, or what an AlignError says (one line on stderr), or 130
    after Ctrl-C.
    """
    from align.display.console import say, say_traceback
    from align.errors import AlignError

    sys.excepthook = say_traceback
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _arguments(argv)
        silence_telemetry()
        from align.config.params import profile_overrides

        profile = profile_overrides(args.profile)
        if profile:
            _check_profile(args.profile, profile, args.params)
        args.typed = args.overrides  # a profile is for all verbs, but what was typed is meant for this one
        args.overrides = [*profile, *args.typed]
        params = _params(args)
        if args.verb in STAGES and "DVC_STAGE" in os.environ:
            from align.project.declared import require_stage

            require_stage(args.verb, VERBS[args.verb].module, params)
        with ExitStack() as stack:
            if getattr(args, "checkpoint", None) is not None:
                args.model = Path(stack.enter_context(TemporaryDirectory(prefix="align-")))
                checkpointed = importlib.import_module("align.training.checkpointed")
                checkpointed.model_of_checkpoint(params, args.checkpoint, args.model)
            if args.verb in ("pretrain", "finetune") and (names := params.values[args.verb]["validate_on"]):
                args.validation = importlib.import_module("align.pipeline.validation").set_validation(params, names)
            if args.verb == "register":  # promotion and lineage are rooms above registration
                args.outlook = importlib.import_module("align.release.promotion.judge").outlook
                args.log_page = importlib.import_module("align.lineage.trace.trace").log_page
            apart = args.verb == "evaluate" and args.log is not None
            module = "align.pipeline.logged_evaluation" if apart else VERBS[args.verb].module
            if args.verb == "evaluate" and importlib.import_module("align.services.job").place_of_job() is not None:
                module = "align.pipeline.shared_evaluation"
            importlib.import_module(module).main(params, args)
    except AlignError as error:
        say(f"align: error: {error}")
        return error.exit_code
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


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the words of a command. Exits with 2 after one line on stderr if they are not a command."""
    verb = named(argv[0]) if argv else None
    parser = build_parser(verb)
    if verb is None:
        parser.error("no verb")
    if verb.startswith("-") and verb not in ("-h", "--help"):
        parser.error(f"{argv[0]}: no verb; it comes first, as in align filter --set filter.min_words=4")
    if not verb.startswith("-") and verb not in VERBS:
        from align.config.params import did_you_mean

        parser.error(f"{argv[0]}: no such verb{did_you_mean(verb, VERBS)}")
    args, stray = parser.parse_known_args([verb, *argv[1:]])
    if stray:
        parser.prog = f"align {verb}"
        is_value = re.match(r"[a-z_]+\.[a-z_.]+=", stray[0])
        parser.error(
            f"{stray[0]}: values of params.yaml are changed by --set {stray[0]}"
            if is_value
            else f"unknown arguments: {' '.join(stray)}"
        )
    return args


def _check_profile(name: str, values: Sequence[str], params: Path | None) -> None:
    """Names the profile instead of --set if it has a key that the params file lacks."""
    from align.config import load_params
    from align.errors import ConfigError

    try:
        load_params(params, values)
    except ConfigError as error:
        raise ConfigError(f"--profile {name}: {str(error).removeprefix('--set ')}") from None


def _params(args: argparse.Namespace) -> Params:
    """The values of a command. Those of a run are checked as a whole once, by the program that it becomes."""
    from align.config import load_params

    if args.verb in ("run", "register") or (args.verb == "plan" and args.cards is None):
        return load_params(args.params, args.overrides)
    of_any_model = args.verb == "evaluate" and (args.model or args.checkpoint)  # which nothing promotes
    return read_params(args.params, args.overrides, "promote.metrics" if of_any_model else "")


def _refusal(error: OSError) -> str | None:
    """Why the disk did not do what a command asked, with the path; None if the error is ours."""
    from align.durable.files import without_temporary_names

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
    """Turns off libraries' telemetry, and torch's trace of each lost connection; called before any is imported."""
    for name, value in {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DVC_NO_ANALYTICS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
