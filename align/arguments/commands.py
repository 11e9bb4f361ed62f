"""Arguments of the commands, which are not in the DAG: a function for each, named as the verb."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from align.arguments.stages import checkpoint, given_model
from align.project.installed import installed

#: Parts of the pipeline that can be run alone.
PARTS = ("all", "data", "training", "evaluation")
#: How many runs `align runs` shows unless more are asked for.
NUM_SHOWN = 20
#: Of `align serve`.
PORT = 7000
#: What `align ready` writes; it is in git.
READY = Path("data/sample/ready")
#: What `align publish` makes of it; in git, too.
SITE = Path("data/sample/site")

_JSON = "print everything as JSON, for programs"


def init(parser: ArgumentParser) -> None:
    """Arguments of `align init`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the new folder")
    parser.set_defaults(params=installed("params.yaml"))  # not those of the folder in which it is typed


def run(parser: ArgumentParser) -> None:
    """Arguments of `align run`: what to run, and its own."""
    _request(parser)
    parser.add_argument(
        "--keep", action="store_true", help="leave the server of Prefect that this run starts, until `make down`"
    )


def _request(parser: ArgumentParser) -> None:
    """What to run, as in the form in Prefect's UI."""
    parser.add_argument("--name", default="demo", help="the result becomes branch run/NAME (default: demo)")
    parser.add_argument(
        "--ref", metavar="REV", help="run this git revision, in a worktree of its own (default: this checkout as it is)"
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        default=PARTS[0],
        help="a part: data ends with the vocabulary, training makes the model, evaluation measures it; what the part "
        "reads must not be stale",
    )
    parser.add_argument(
        "--from", dest="from_stage", metavar="STAGE", help="from this stage on; those before it must be as above"
    )
    parser.add_argument("--to", dest="to_stage", metavar="STAGE", help="up to this stage")
    parser.add_argument(
        "--snapshot-dirty",
        action="store_true",
        help="run HEAD with your uncommitted changes in a worktree; without this, --set and --profile refuse them",
    )


def plan(parser: ArgumentParser) -> None:
    """Arguments of `align plan`: what would be run, and its own."""
    _request(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--for", dest="cards", metavar="8xH100", help="only what training takes on such cards")
    parser.add_argument("--price", type=float, help="of a card and hour, with --for")


def register(parser: ArgumentParser) -> None:
    """Arguments of `align register`."""
    parser.add_argument("--revision", default=None, help="git revision of this run; default: the checkout's")
    parser.add_argument(
        "--cached-stage", action="append", default=[], metavar="STAGE", help="a stage that DVC took from its cache"
    )


def promote(parser: ArgumentParser) -> None:
    """Arguments of `align promote`; the second half is about approval."""
    parser.add_argument(
        "--version",
        type=int,
        metavar="N",
        help="promote this version; default: the one with alias 'candidate', which `align register` moves",
    )
    parser.add_argument(
        "--expect-champion", type=int, metavar="N", help="only while version N is the champion; 0: while none is"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="print the decision as JSON, or write it; then waiting for approval is not an error",
    )  # fmt: skip
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--approved-by", metavar="WHO", help="you approve, if the gates pass; kept in the history")
    who.add_argument("--rejected-by", metavar="WHO", help="you reject the version: nothing moves; kept in the history")
    parser.add_argument("--because", metavar="WHY", help="why you approve or reject")


def rollback(parser: ArgumentParser) -> None:
    """Arguments of `align rollback`."""
    parser.add_argument(
        "--why", help="kept in the history; needed where a champion that somebody made so by hand is passed over"
    )


def champion(parser: ArgumentParser) -> None:
    """Arguments of `align champion`."""
    parser.add_argument("--at", metavar="TIME", help="which version it was at a date (its end) or a time, in UTC")
    parser.add_argument("--json", action="store_true", help=_JSON)


def search(parser: ArgumentParser) -> None:
    """Arguments of `align search`."""
    parser.add_argument("text", nargs="?", help='a description of the images, such as "red heart"')
    parser.add_argument("--image", type=Path, metavar="FILE", help="find images like this one")
    parser.add_argument("--key", help="find images like this indexed one")
    parser.add_argument("--plus", metavar="TEXT", help="with an image: add this text")
    parser.add_argument("--minus", metavar="TEXT", help="with an image: take this text away")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="only images whose columns fulfil it: 'category=Lamps', 'price<=20'; may be repeated",
    )
    _index(parser)
    parser.add_argument(
        "-k", type=int, default=None, metavar="N", help="number of results (default: search.num_results)"
    )
    parser.add_argument("--surely", type=float, metavar="LEVEL", help="how sure images above the line are: 0.75 or 0.9")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures")


def serve(parser: ArgumentParser) -> None:
    """Arguments of `align serve`."""
    parser.add_argument(
        "--local", action="store_true", help="serve this checkout's own model and index, not the registry's champion"
    )
    parser.add_argument("--ready", type=Path, metavar="DIR", help="serve a folder that `align ready` wrote")
    _index(parser)
    parser.add_argument("--port", type=int, metavar="N", help=f"default: ALIGN_SEARCH_PORT, or {PORT}")


def _index(parser: ArgumentParser) -> None:
    parser.add_argument("--index", type=Path, metavar="DIR", help="of `align index --source`; default: paths.index")
    given_model(parser)


def embed(parser: ArgumentParser) -> None:
    """Arguments of `align embed`."""
    parser.add_argument(
        "input", type=Path, help="a folder of images, a text file (one text per line), or a parquet file"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    parser.add_argument("--column", metavar="NAME", help="of a parquet file: texts, or the bytes of images")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder, or packaged model; paths.finetuned")


def ready(parser: ArgumentParser) -> None:
    """Arguments of `align ready`."""
    parser.add_argument("--out", type=Path, default=READY, metavar="FOLDER", help=f"replaced whole (default: {READY})")


def publish(parser: ArgumentParser) -> None:
    """Arguments of `align publish`."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="replaced whole")
    _index(parser)
    what = "a file of `npm pack onnxruntime-web@1.20.1`, or a folder of its files"
    parser.add_argument("--runtime", type=Path, metavar="FILE", help=f"{what} (default: that of {SITE})")


def export(parser: ArgumentParser) -> None:
    """Arguments of `align export`."""
    formats = ("align", "hf", "open_clip", "onnx")
    what = "align: a model folder, such as finetune.from; hf is for transformers.AlignModel"
    parser.add_argument("--format", choices=formats, required=True, help=what)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder; replaced whole")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--model", type=Path, metavar="FOLDER", help="default: paths.finetuned")
    checkpoint(one)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="to check with; default: the evaluation sets")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="to check with, one text per line")
    what = "SPDX identifier of the weights' licence, for the folder's README"
    parser.add_argument("--license", type=_spdx, metavar="ID", help=what)


def _spdx(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", text):
        raise ArgumentTypeError("expected an identifier of spdx.org/licenses, such as Apache-2.0")
    return text


def blend(parser: ArgumentParser) -> None:
    """Arguments of `align blend`."""
    parser.add_argument("a", type=Path, metavar="A", help="a model folder")
    parser.add_argument("b", type=Path, metavar="B", help="another one of the same shape, such as A fine-tuned")
    parser.add_argument("--alpha", type=_share, required=True, metavar="SHARE", help="of B, from 0 to 1")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder; replaced whole")


def _share(text: str) -> float:
    """A number in [0, 1]."""
    if not 0 <= (share := float(text)) <= 1:
        raise ValueError(text)
    return share


def import_model(parser: ArgumentParser) -> None:
    """Arguments of `align import_model`."""
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="FOLDER", help="folder to import")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model folder; replaced whole")


def trace(parser: ArgumentParser) -> None:
    """Arguments of `align trace`."""
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="MODEL@ALIAS, MODEL/VERSION, RUN, KEY, URL or IMAGE_ID; `run:NAME`, `key:KEY`, ... say which",
    )
    _output(parser, "with the chain drawn")


def opt_out(parser: ArgumentParser) -> None:
    """Arguments of `align opt_out`."""
    for kind, what in (
        ("keys", "keys of pairs; each is recorded as the address and sha256 of its picture"),
        ("urls", "addresses of pictures, or of pages that show them"),
        ("hosts", "hosts of pictures or pages, each including the hosts below it"),
    ):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"file with {what}; one per line")
    parser.add_argument("--reason", default="", help="recorded with each entry")
    parser.add_argument("--purge", action="store_true", help="remove pictures and texts of all recorded pairs")
    parser.add_argument("--yes", action="store_true", help="with --purge: do it; without --yes it only lists them")


def compare(parser: ArgumentParser) -> None:
    """Arguments of `align compare`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="name of a run, its id in MLflow or Prefect, or . for this checkout; two or more",
    )
    _output(parser, "with the tables and bars")


def runs(parser: ArgumentParser) -> None:
    """Arguments of `align runs`."""
    parser.add_argument("what", nargs="?", choices=("show",), help="all of one run; default: a list")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the run, as the list has it")
    parser.add_argument("--last", type=int, default=NUM_SHOWN, metavar="N", help=f"so many; default: {NUM_SHOWN}")
    parser.add_argument("--json", action="store_true", help=_JSON)
    parser.add_argument("--repair", action="store_true", help="give killed runs a true end, and remove what they left")


def study(parser: ArgumentParser) -> None:
    """Arguments of `align study`."""
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="arms, seeds and the figure that decides")


def diff(parser: ArgumentParser) -> None:
    """Arguments of `align diff`."""
    what = "git revision of a run, such as run/demo; or a folder with raw and filtered in it, such as data"
    parser.add_argument("before", metavar="DATA_A", help=what)
    parser.add_argument("after", metavar="DATA_B", help="the same")
    parser.add_argument("--json", action="store_true", help=_JSON)


def _output(parser: ArgumentParser, what: str) -> None:
    """The ways in which a command about lineage shows what it found."""
    parser.add_argument("--json", action="store_true", help=_JSON)
    parser.add_argument("--html", type=Path, metavar="FILE", help=f"also write a page {what}")
