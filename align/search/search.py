"""search: finds images by text, by image, by image + text or by image - text (paper section 7, text weight 2).

It answers as the service does (`align.search.service.queries`). Prints a table; `--json` prints JSON; `--html FILE`
also writes a self-contained page with the pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from textwrap import wrap

import numpy as np

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.search import SearchConfig
from align.display.console import say, show, show_json
from align.durable.files import write_text
from align.errors import ConfigError, DataError
from align.search.given_model import given_model
from align.search.report import AnsweredQuery, ImageAnswer, search_page
from align.search.service.answers import SearchAnswer, SearchHit
from align.search.service.queries import answer, parsed, require_one_question
from align.search.service.served import Folders, Pictures, Release, Served, load
from align.services.dvc.outs import require_output_file


def _words(hit: SearchHit) -> str:
    """The texts of an image, and its columns."""
    return " | ".join([*hit.texts, *(f"{name}: {value}" for name, value in hit.columns.items() if value is not None)])


def _table(hits: list[SearchHit], promise: str) -> list[str]:
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    lines = [f"{'rank':>4}  {'score':>6}  {'key':<9}  text"]
    num_sure = sum(bool(hit.sure) for hit in hits)
    for hit in hits:
        if hit.sure is False and hit.rank == num_sure + 1:
            lines += ["-" * width, *wrap(promise, width)]
        line = f"{hit.rank:>4}  {hit.score:>6.3f}  {hit.key:<9}  {_words(hit)}"
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return lines


def _json(hits: list[SearchHit]) -> str:
    rows = [hit.model_dump(exclude={"image"} if hit.columns else {"image", "columns"}) for hit in hits]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def _page(found: SearchAnswer, key: str | None, image: bytes | None, served: Served, params: Params) -> str:
    index = served.index
    pictures = Pictures(params.section(PathsConfig).shards, params.section(StoreConfig))
    image = pictures.read(served, index.item(key)) if key else image
    answers = [
        ImageAnswer(pictures.read(served, index.item(hit.key)), _words(hit), hit.score, None) for hit in found.hits
    ]
    num_above = sum(hit.sure is not False for hit in found.hits)
    above, below = answers[:num_above], answers[num_above:]
    sections = {
        "Nearest images": [AnsweredQuery(found.query, image, above, None)] if above or not below else [],
        "Below the line": [AnsweredQuery(found.query, image, below, None)] if below else [],
    }
    return search_page("Search", f"{len(answers)} of {len(index.items):,} images. {found.promise}", sections)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"--image {path}: {error.strerror}") from None


def main(params: Params, args: argparse.Namespace) -> None:
    """`align search`."""
    config, paths = params.section(SearchConfig), params.section(PathsConfig)
    if args.k is not None and args.k < 1:
        raise ConfigError(f"search: -k {args.k}: must be at least 1")
    if args.html:
        require_output_file("--html", args.html, ".html")
    image = _read_image(args.image) if args.image else None
    given = {"text": args.text, "key": args.key, "plus": args.plus, "minus": args.minus, "where": args.where}
    given |= {"surely": args.surely} if args.surely is not None else {}
    try:
        query = parsed(given).model_copy(update={"limit": args.k or config.num_results})  # a page of ours may be longer
        require_one_question(query, has_image=image is not None)
    except DataError as error:
        raise ConfigError(f"search: {error}") from None
    model = given_model(args.model, params)
    served = load(Release("", model.as_posix()), Folders(model, args.index or paths.index))
    embedder, allowed = served.embedder, served.index.allowed(where=query.where)
    nothing = np.zeros((0, embedder.width), np.float32)
    texts = embedder.embed_texts(query.texts) if query.texts else nothing
    try:
        pictures = embedder.embed_images([image]) if image is not None else nothing
    except DataError as error:
        raise DataError(f"--image {args.image}: {error}") from None
    found = answer(query, served, allowed, config.text_weight, texts, pictures)
    say(f"search: the model in {model}, promoted or not; `align serve` answers with the champion")
    if found.hint:
        say(f"search: no image meets the conditions; {found.hint}")
    if args.json:
        show_json(_json(found.hits))
    else:
        show(*_table(found.hits, found.promise))
        if found.promise and (not found.hits or found.hits[-1].sure is not False):
            say(f"search: {found.promise}")
    if args.html:
        write_text(args.html, _page(found, query.key, image, served, params))
        say(f"search: wrote {args.html}")
