"""`python -m flows.backup save|restore PLACE`: the programs of `make backup TO=PLACE` and `make restore FROM=PLACE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from align.cli import silence_telemetry
from align.config import load_params
from align.config.params import PARAMS_FILE
from align.config.store import StoreConfig
from align.console import say, show
from align.errors import AlignError, DataError
from align.git import git
from flows.backup.place import Place
from flows.backup.restore import restore
from flows.backup.save import save


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 after an AlignError or an error of the disk, 2 without a place, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m flows.backup")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, variable in (("save", "TO"), ("restore", "FROM")):
        one = verbs.add_parser(verb)
        one.add_argument("place", nargs="?", help="a folder, or s3://bucket/prefix")
        one.set_defaults(missing=f"say where: make {'backup' if verb == 'save' else verb} {variable}=FOLDER|s3://...")
    verbs.choices["save"].add_argument("--checkpoints", action="store_true", help="training checkpoints, too")
    verbs.choices["restore"].add_argument("--backup", metavar="NAME", help="an earlier one; default: the newest")
    args = parser.parse_args(argv)
    silence_telemetry()
    try:
        if not args.place:
            raise DataError(args.missing)
        root = Path.cwd()
        if Path(git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            raise DataError(f"{root}: start in the root of the checkout")
        params = load_params(Path(PARAMS_FILE))
        place = Place(args.place, params.section(StoreConfig))
        if args.verb == "save":
            show(save(root, params, place, checkpoints=args.checkpoints, log=say))
        else:
            show(restore(root, place, args.backup, log=say))
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except OSError as error:
        say(f"align: error: {error.filename or args.place}: {error.strerror or error}; nothing is complete; run again")
        return 1
    except KeyboardInterrupt:
        say("align: interrupted; run it again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
