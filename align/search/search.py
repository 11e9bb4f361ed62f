"""search: finds images by text, by image, by image + text or by image - text (paper section 7, text weight 2).

Prints a table; `--json` prints JSON; `--html FILE` also writes a self-contained page with the pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.search import SearchConfig
from align.display.console import say, show, show_json
from align.durable.files import write_text
from align.errors import ConfigError, DataError
from align.formats.image_index import Hit, ImageIndex, IndexedImage
from align.formats.model_folder import model_digest
from align.formats.shards import local_tar, read_manifest
from align.model.embedder import Embedder, Encoder
from align.search.given_model import given_model
from align.search.queries import compose
from align.search.report import AnsweredQuery, ImageAnswer, search_page
from align.services.dvc.outs import require_output_file
from align.services.s3.store import fetcher
from align.services.vector_index import VectorIndex


@dataclass(frozen=True)
class Query:
    """A text; or an image (a file's bytes, or the key of an indexed image), plus or minus a text."""

    text: str | None = None
    image: bytes | None = None
    key: str | None = None
    plus: str | None = None
    minus: str | None = None

    def describe(self) -> str:
        """The query in words."""
        if self.text is not None:
            return self.text
        words = f"image {self.key}" if self.key else "the image"
        return words + (f" + “{self.plus}”" if self.plus else "") + (f" - “{self.minus}”" if self.minus else "")


def search(
    query: Query,
    *,
    index: ImageIndex,
    encoder: Encoder,
    text_weight: float,
    num_results: int,
    where: Sequence[str] = (),
) -> list[Hit]:
    """The nearest indexed images, nearest first. An indexed query image is excluded from its own answers.

    Args:
        query: has exactly one of text, image and key; plus and minus need an image or a key.
        index: the images.
        encoder: the model that the index was made with.
        text_weight: weight of the texts added or taken away.
        num_results: the highest number of images returned.
        where: conditions on columns, see `ImageIndex.allowed`.

    Raises:
        ConfigError: the query has none of these forms.
        DataError: the image does not decode, no image has this key, or a condition names no column.
    """
    allowed = index.allowed(where=where)
    if sum(part is not None for part in (query.text, query.image, query.key)) != 1:
        raise ConfigError('search: give one of a text ("red heart"), --image FILE and --key KEY')
    if query.text is not None:
        if query.plus or query.minus:
            raise ConfigError("search: --plus and --minus change an image; give --image FILE or --key KEY with them")
        return index.search(_text(encoder, query.text), num_results, allowed=allowed)
    vector = index.vector(query.key) if query.key else encoder.embed_images([query.image or b""])[0]
    try:
        vector = compose(
            vector,
            plus=_text(encoder, query.plus) if query.plus else None,
            minus=_text(encoder, query.minus) if query.minus else None,
            text_weight=text_weight,
        )
    except ValueError as error:
        raise DataError(f"search: {error}") from None
    return index.search(vector, num_results, exclude=[query.key] if query.key else [], allowed=allowed)


def open_index(directory: Path, digest: str) -> ImageIndex:
    """Loads the index, and refuses one that was made with another model.

    Raises:
        DataError: there is no index, or it was made with another model.
    """
    index = ImageIndex.load(directory, VectorIndex.load)
    if index.header.model_digest != digest:
        raise DataError(f"{directory}: was made with another model; run `align index` again")
    return index


def _text(encoder: Encoder, text: str) -> NDArray[np.float32]:
    if not text.strip():
        raise ConfigError("search: the text is empty")
    return np.asarray(encoder.embed_texts([text])[0], dtype=np.float32)


def _words(hit: Hit, index: ImageIndex) -> str:
    """The texts of an image, and its columns."""
    columns = index.columns_of(hit.item.key).items()
    return " | ".join([*hit.item.texts, *(f"{name}: {value}" for name, value in columns if value is not None)])


def _table(hits: list[Hit], index: ImageIndex) -> list[str]:
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    lines = [f"{'rank':>4}  {'score':>6}  {'key':<9}  text"]
    for rank, hit in enumerate(hits, 1):
        line = f"{rank:>4}  {hit.score:>6.3f}  {hit.item.key:<9}  {_words(hit, index)}"
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return lines


def _json(hits: list[Hit], index: ImageIndex) -> str:
    rows = [
        {
            "rank": rank,
            "score": round(hit.score, 6),
            "key": hit.item.key,
            "image_id": hit.item.image_id,
            "split": hit.item.split,
            "texts": list(hit.item.texts),
        }
        | ({"columns": columns} if (columns := index.columns_of(hit.item.key)) else {})
        for rank, hit in enumerate(hits, 1)
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2)


def _page(query: Query, hits: list[Hit], index: ImageIndex, picture: Callable[[IndexedImage], bytes]) -> str:
    image = picture(index.item(query.key)) if query.key else query.image
    answers = [ImageAnswer(picture(hit.item), _words(hit, index), hit.score, None) for hit in hits]
    answered = AnsweredQuery(query.describe(), image, answers, None)
    return search_page("Search", f"{len(hits)} of {len(index.items):,} images.", {"Nearest images": [answered]})


def _pictures(index: ImageIndex, params: Params) -> Callable[[IndexedImage], bytes]:
    """The index's thumbnails; without any, the shards' pictures.

    Raises:
        DataError: the shards have changed since the index was made.
    """
    if index.has_thumbnails:
        return lambda item: index.thumbnail(item.key)
    shards, fetch = params.section(PathsConfig).shards, fetcher(params.section(StoreConfig))
    manifest = read_manifest(shards)
    if manifest.digest != index.header.shards_digest:
        raise DataError(f"{shards}: changed since the index was made; run `align index` again")
    tars = manifest.tars
    return lambda item: item.image(local_tar(shards, tars[item.shard], fetch))


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
    query = Query(text=args.text, image=image, key=args.key, plus=args.plus, minus=args.minus)
    model = given_model(args.model, params)
    index = open_index(args.index or paths.index, model_digest(model))
    encoder = Embedder.load(model)
    try:
        hits = search(
            query,
            index=index,
            encoder=encoder,
            text_weight=config.text_weight,
            num_results=args.k or config.num_results,
            where=args.where,
        )
    except DataError as error:
        raise DataError(f"--image {args.image}: {error}" if args.image else str(error)) from None
    say(f"search: the model in {model}, promoted or not; `align serve` answers with the champion")
    if args.json:
        show_json(_json(hits, index))
    else:
        show(*_table(hits, index))
    if args.html:
        write_text(args.html, _page(query, hits, index, _pictures(index, params)))
        say(f"search: wrote {args.html}")
