"""publish: the page of search as a folder for any web space. There is no server: the browser computes what it asks.

    index.html, *.js, page.css   the page of `align serve`; only source.js is another one
    runtime/                     onnxruntime for browsers, by the sha256 of its files
    about.json                   what the page begins with; it names the folder of the rest
    data-<digest>/
      text_encoder.onnx          checked against torch on texts of the index before the folder appears
      tokenizer.json             a BERT WordPiece; any other one is refused
      coarse/, fine/             the higher 8 and the lower 16 bits of the vectors' numbers
      rows/                      what is searched in and shown of a picture
      pictures/                  thumbnails, and where each picture comes from

What is taken down is not in it; after a take-down, publish again. The folder of the data has another name then, so that
a page that is open says so instead of mixing two versions. It stands above search and release, whose parts it joins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.arguments.commands import SITE
from align.config import Params
from align.config.paths import PathsConfig
from align.display.console import say
from align.durable.files import replace_directory, require_apart, sha256_folder
from align.errors import DataError, first_line
from align.formats.image_index import CATALOGUE, ImageIndex, IndexedImage
from align.formats.indexed_images import Vectors32
from align.formats.model_folder import TOKENIZER, origin, tokenizer_of
from align.services.dvc.outs import require_no_out

MADE_BY = "publish"
_ALONE = Path(__file__).parent / "search/service/page/alone"
_DIGESTS = [line.split("  runtime/") for line in (_ALONE / "runtime.sha256").read_text("utf-8").splitlines()]
#: A file of onnxruntime-web 1.20.1 -> its sha256.
RUNTIME = {name: digest for digest, name in _DIGESTS}
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'"
)
_HEAD = '<meta charset="utf-8">\n'
#: Pictures of a file: a search reads all of `coarse`, and of the others the files of what it finds.
_AT_ONCE = {"rows": 2048, "fine": 256, "pictures": 16}
#: Texts of the index that are asked of both, and the share of them whose first ten have to be the same.
_NUM_ASKED, _SAME, _FIRST = 200, 0.99, 10
#: Scores that differ by less may change places.
_EQUAL = 1e-6


def publish(*, model: Path, index: ImageIndex, runtime: Path, out: Path) -> int:
    """Writes the folder, whole or not at all, and returns its bytes.

    Args:
        model: a model folder of ours.
        index: its index, with thumbnails, without what is taken down.
        runtime: a folder of the files of RUNTIME, or npm's package that has them.
        out: replaced whole.

    Raises:
        DataError: the parts do not belong together, or a browser cannot have them: the index has no thumbnails or no
            picture, the tokenizer is no WordPiece, the runtime is another one, or the first ten differ.
        ConfigError: the packages that write ONNX are not installed.
    """
    from align.search.service.app import PAGE

    files = read_runtime(runtime)
    if not index.has_thumbnails:
        raise DataError("the index has no thumbnails; set index.thumbnail_px and run `align index` again")
    if not index.num_images:
        raise DataError("the index holds no image that is not taken down")
    tokenizer = browser_tokenizer(tokenizer_of(model) / TOKENIZER)
    items = [hit.item for hit in index.search(None, index.num_images)]
    vectors = np.stack([index.vector(item.key) for item in items])
    scale = float(np.abs(vectors).max()) / (127 << 16)
    rounded = np.rint(vectors / scale).astype(np.int32)
    with replace_directory(out, MADE_BY) as part:
        data = part / "data"
        data.mkdir()
        kept = (rounded * scale).astype(np.float32)
        same = _write_model(model, items, vectors, kept, data / "text_encoder.onnx")
        (data / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False, sort_keys=True), "utf-8")
        _write_index(index, items, rounded, data)
        digest = sha256_folder(data)
        data.rename(part / f"data-{digest[:16]}")
        about = _about(model, index, items, digest) | {"scale": scale, "folder": f"data-{digest[:16]}"}
        said = json.dumps(about, ensure_ascii=False, indent=1)  # in the columns' order
        (part / "about.json").write_text(said, "utf-8")
        (part / "runtime").mkdir()
        for name, content in files.items():
            (part / "runtime" / name).write_bytes(content)
        for file in [*PAGE.iterdir(), *_ALONE.iterdir()]:  # of two with one name, that of alone/
            if file.is_file():
                (part / file.name).write_bytes(file.read_bytes())
        head = f'{_HEAD}<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        page = (PAGE / "index.html").read_text("utf-8")
        (part / "index.html").write_text(page.replace(_HEAD, head), "utf-8")
        num_bytes = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    say(f"publish: the first {_FIRST} pictures are those of torch for {same:.1%} of some texts of the index")
    return num_bytes


def read_runtime(given: Path) -> dict[str, bytes]:
    """The files of onnxruntime for browsers. Raises DataError if they are not there, or are others."""
    how = "run `npm pack onnxruntime-web@1.20.1`, and give its file with --runtime"
    try:
        if given.is_dir():
            found = {name: (given / name).read_bytes() for name in RUNTIME}
        else:
            with tarfile.open(given) as package:
                members = {name: package.extractfile(f"package/dist/{name}") for name in RUNTIME}
                found = {name: member.read() for name, member in members.items() if member is not None}
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{given}: no onnxruntime for browsers here ({first_line(error)}); {how}") from None
    for name, digest in RUNTIME.items():
        if hashlib.sha256(found.get(name, b"")).hexdigest() != digest:
            raise DataError(f"{given}: {name} is not the one of onnxruntime-web 1.20.1, by its sha256; {how}")
    return found


def browser_tokenizer(path: Path) -> dict[str, Any]:
    """What the page's wordpiece.js reads: of tokenizer.json what decides, and which characters are which, as the
    library `tokenizers` has them. Raises DataError for any other tokenizer than BERT's WordPiece.
    """
    from tokenizers import normalizers, pre_tokenizers

    given = json.loads(path.read_text("utf-8"))
    kinds = [(given.get(part) or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer", "post_processor")]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer", "BertProcessing"]:
        said = ", ".join(map(str, kinds))
        raise DataError(f"{path}: {said}: a page without a server knows BERT's WordPiece only; use `align serve`")
    added = given["added_tokens"]
    if odd := [
        one["content"] for one in added if any(one[name] for name in ("lstrip", "rstrip", "normalized", "single_word"))
    ]:
        raise DataError(f"{path}: token {odd[0]!r} is matched in a way that a page without a server does not know")
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    clean, ideographs, marks = (
        normalizers.BertNormalizer(**off | {name: True}).normalize_str
        for name in ("clean_text", "handle_chinese_chars", "strip_accents")
    )
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    ends = given["post_processor"]
    return {
        "model": given["model"],
        "normalizer": given["normalizer"],
        "added_tokens": [{"content": one["content"], "id": one["id"]} for one in added],
        "ends": [ends["cls"][1], ends["sep"][1]],
        "characters": {
            "isDropped": _runs(lambda one: not clean(one)),
            "isIdeograph": _runs(lambda one: ideographs(one) != one),
            "isMark": _runs(lambda one: not marks(one)),
            "isPunctuation": _runs(lambda one: len(split(f"a{one}b")) == 3),
        },
    }


def _runs(has: Callable[[str], bool]) -> list[int]:
    """The characters that have something: the first and the last of each run of them. Planes 4 to 13 are empty."""
    codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0x110000)]
    among = np.zeros(0x110001, np.int8)
    among[[code for code in codes if has(chr(code))]] = 1
    edges = np.flatnonzero(np.diff(among, prepend=0))
    edges[1::2] -= 1
    return [int(code) for code in edges]


def _write_model(model: Path, items: Sequence[IndexedImage], vectors: Vectors32, kept: Vectors32, path: Path) -> float:
    """Writes the text encoder: with weights of float16 if the first ten stay, else of float32.

    Args:
        model: a model folder.
        items: the pictures.
        vectors: theirs.
        kept: the same as the page has them.
        path: the new file.

    Returns:
        The share of texts of the index with the same first ten, where equal scores may change places.

    Raises:
        DataError: it is below _SAME.
    """
    import torch

    from align.model.embedder import Embedder, load_with_tokenizer
    from align.release.exchange.onnx import read_encoder, write_text_encoder

    module, tokenizer = load_with_tokenizer(model)
    texts = [item.texts[0] for item in items[:: -(-len(items) // _NUM_ASKED)]]
    scores = Embedder(module, tokenizer).embed_texts(texts) @ vectors.T
    best = -np.sort(-scores)[:, :_FIRST]
    share = 0.0
    for halves in (True, False):
        write_text_encoder(module, path, halves=halves)
        encode = read_encoder(path)
        asked = np.concatenate([encode(*map(torch.as_tensor, tokenizer([text]))).numpy() for text in texts])
        found = np.argsort(-(asked @ kept.T), kind="stable")[:, :_FIRST]
        share = float(np.mean((best - np.take_along_axis(scores, found, 1) < _EQUAL).all(1)))
        if share >= _SAME:
            return share
    raise DataError(
        f"{model}: not published: as ONNX the first {_FIRST} pictures are the same for {share:.0%} of {len(texts)} "
        f"texts; at least {_SAME:.0%} is needed"
    )


def _write_index(index: ImageIndex, items: Sequence[IndexedImage], rounded: NDArray[np.int32], data: Path) -> None:
    coarse = (rounded + (1 << 15)) >> 16
    fine = rounded - (coarse << 16)
    rows = [
        {"key": item.key, "split": item.split, "texts": list(item.texts), "columns": item.columns} for item in items
    ]
    kinds: list[tuple[str, str, Callable[[slice], bytes]]] = [
        ("coarse/{}.bin", "rows", lambda some: coarse[some].astype(np.int8).tobytes()),
        ("fine/{}.bin", "fine", lambda some: fine[some].astype("<i2").tobytes()),
        ("rows/{}.json", "rows", lambda some: json.dumps(rows[some], ensure_ascii=False).encode()),
        ("pictures/{}.bin", "pictures", lambda some: _pictures(index, items[some])),
    ]
    for name, size, content in kinds:
        (data / name).parent.mkdir()
        for start in range(0, len(items), _AT_ONCE[size]):
            place = start // _AT_ONCE[size]
            (data / name.format(place)).write_bytes(content(slice(start, start + _AT_ONCE[size])))


def _pictures(index: ImageIndex, items: Sequence[IndexedImage]) -> bytes:
    """Some pictures: the length of a list as uint32, the list, which says what is known of each, and their JPEGs."""
    jpegs = [index.thumbnail(item.key) for item in items]
    facts = [
        {
            "size": len(jpeg), "image_id": item.image_id, "shard": item.shard, "offset_bytes": item.offset_bytes,
            "found": [
                {"key": key, "page_url": one.page_url or None, "url": one.url or None}
                for key, one in zip(item.keys, index.addresses(item.key), strict=True)
            ],
        }
        for item, jpeg in zip(items, jpegs, strict=True)
    ]  # fmt: skip
    header = json.dumps(facts, ensure_ascii=False).encode()
    return b"".join([struct.pack("<I", len(header)), header, *jpegs])


def _about(model: Path, index: ImageIndex, items: Sequence[IndexedImage], digest: str) -> dict[str, Any]:
    """What the page begins with, as the service says it."""
    from align.formats.model_folder import read_config
    from align.search.service.queries import start, version
    from align.search.service.served import Release, Served
    from align.search.service.service import trained_on
    from align.search.surely import LEVELS, NO_LINE, meaning
    from align.serve import pair_of_index

    config, header = read_config(model).model, index.header
    release = Release(digest, model.resolve().name)
    served = Served(release, None, index, origin=origin(model))  # type: ignore[arg-type]  # nothing is embedded here
    begin = start(served)
    places = {item.key: place for place, item in enumerate(items)}
    columns = {  # a value that only pictures have that are taken down is not one
        name: choices and [one for one in choices if any(item.columns[name] == one for item in items)]
        for name, choices in begin.columns.items()
    }
    promise, level = header.promise, LEVELS[0]
    sure = promise and {
        "line": promise.lines[level], "slope": promise.slope,
        "held": meaning(promise, level, has_sure=True), "silent": meaning(promise, level, has_sure=False),
    }  # fmt: skip
    is_catalogue = items[0].split == CATALOGUE
    note = "The index is of a catalogue: no filter has seen it." if is_catalogue else "This is what the index knows."
    splits = sorted({item.split for item in items})
    return {
        "schema_version": 1, "num_images": len(items), "width": header.width, "max_tokens": config.max_tokens,
        "at_once": _AT_ONCE, "served": version(served).model_dump(), "example": begin.example, "columns": columns,
        "first": [places[hit.key] for hit in begin.hits], "promise": sure, "no_line": NO_LINE,
        "trained_on": {split: trained_on(split, None, header.shards_digest) for split in splits},
        "pair": pair_of_index(items[0], header, note).model_dump(exclude={"text"}),
        "warnings": [header.warning] if header.warning else [],
    }  # fmt: skip


def main(params: Params, args: argparse.Namespace) -> None:
    """`align publish`."""
    from align.formats.model_folder import model_digest
    from align.search.given_model import given_model
    from align.search.service.take_downs import TakeDowns
    from align.services.vector_index import VectorIndex

    paths = params.section(PathsConfig)
    model, folder = given_model(args.model, params), args.index or paths.index
    require_no_out("--out", args.out)
    require_apart(args.out, model, folder)
    index = ImageIndex.load(folder, VectorIndex.load)
    if index.header.model_digest != model_digest(model):
        raise DataError(f"{folder}: was made with another model than {model}; run `align index` again")
    taken_down = TakeDowns(paths.policy)
    if taken_down.problem:
        say(f"publish: {taken_down.problem}")
    shown = taken_down.masked(index)
    num_bytes = publish(model=model, index=shown, runtime=args.runtime or SITE / "runtime", out=args.out)
    say(f"publish: {args.out}: {shown.num_images:,} pictures, {num_bytes / 1e6:.1f} MB")
    say(f"publish: to look at it: python3 -m http.server --bind 127.0.0.1 --directory {args.out}")
