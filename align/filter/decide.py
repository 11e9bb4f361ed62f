"""Step 4, decide: SQL again, now with the network's scores; then the rules that are off by default, and the files.

Writes decisions and facts: what was measured of each pair and what was decided. Each shard is a task.

The engine decides over numbers (`align.filter.tables`). The strings are added here, even those of images, since a join
of strings would spill. What was decided is a stream in order of row numbers, so memory is that of one shard, and the
bytes are the same whichever engine decided.

Rule `pair_low_similarity`, beyond ALIGN and off by default: a given model compares image and text. It is a folder of
`align package`, of transformers or of open_clip, named with its digest by `filter.similarity_model`. It sees only the
pairs that all other rules keep. `filter.keep_similarity_share` keeps the best of these, by a count of each similarity.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import ModelFile
from align.display.console import say
from align.durable.files import replaced, sha256_folder
from align.durable.steps import Step
from align.errors import CorruptError, DataError
from align.filter import tables
from align.filter.rules import codes_of
from align.filter.tables import IMAGES, KNOWN_IMAGES, MAX_ROWS, PAIRS, SIMILARITIES
from align.filter.work_folder import FilterWork, NumberedShard, Shards, write_table
from align.formats import filtered
from align.formats.raw import iter_images
from align.interfaces.executor import Executor
from align.interfaces.sql import ROWS_AT_ONCE, Engine
from align.pairs.languages import languages

EmbedImages = Callable[[Sequence[bytes]], NDArray[np.float32]]
EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]

#: Pairs embedded at a time.
_PAIRS_AT_ONCE = 256


def compare_texts(model: ModelFile, work: FilterWork, out: Path, item: NumberedShard) -> None:
    """Writes `similarities` of those pairs of a shard that `remaining` names.

    Raises:
        DataError: the tar is unreadable, or the folder holds no packaged model.
        CorruptError: the model has another sha256 than the one given.
    """
    index, shard = item
    row_numbers = work.rows("remaining/remaining", index)["row_number"].to_numpy()
    cosines: list[tuple[int, float | None]] = []
    if len(row_numbers):
        pairs = pq.read_table(work.measured(shard, "pairs"), columns=["image_key", "text"])
        texts: dict[str, list[tuple[int, str]]] = {}
        for row_number, row in zip(row_numbers.tolist(), pairs.take(row_numbers % MAX_ROWS).to_pylist(), strict=True):
            texts.setdefault(row["image_key"], []).append((row_number, row["text"]))

        def rows() -> Iterator[tuple[str, bytes, str]]:
            for key, data in iter_images(shard):
                for row_number, text in texts.get(key, ()):
                    yield str(row_number), data, text

        embed_images, embed_texts = _towers(model)
        cosines = sorted((int(name), cosine) for name, cosine in similarities(rows(), embed_images, embed_texts))
    columns = [pa.array([row[field] for row in cosines], SIMILARITIES.types[field]) for field in range(2)]
    write_table(pa.table(columns, schema=SIMILARITIES), out / "similarities.parquet")


def _towers(file: ModelFile) -> tuple[EmbedImages, EmbedTexts]:
    # Imported by name, so that the filter's digest does not cover the code of models, which are trained after it. The
    # model's digest already fixes what the given model computes.
    embedder = importlib.import_module("align.model.embedder").Embedder.load(packaged_towers(file))
    return embedder.embed_images, embedder.embed_texts


def packaged_towers(file: ModelFile) -> Path:
    """The model folder inside a folder of `align package`, or another library's folder, after a check of its digest.

    Raises:
        DataError: the folder does not exist, or is neither.
        CorruptError: its files have another sha256.
    """
    folder = Path(file.path)
    where = f"filter.similarity_model: {folder}"
    models = [one.parent for one in folder.glob("artifacts/*/model.safetensors")] or [folder]
    if len(models) != 1 or not any(models[0].glob("*.safetensors")):
        raise DataError(
            f"{where}: no packaged model here; name a folder that `align package` wrote, one of transformers or "
            "open_clip, or null"
        )
    digest = sha256_folder(folder)
    if digest != file.sha256:
        raise CorruptError(f"{where}: its sha256 is {digest}, not {file.sha256}; correct the path or the digest")
    return models[0]


def similarities(
    pairs: Iterable[tuple[str, bytes, str]], embed_images: EmbedImages, embed_texts: EmbedTexts
) -> Iterator[tuple[str, float | None]]:
    """Yields (name, cosine of image and text, 4 decimals) for each (name, image bytes, text), in order.

    The cosine is None if the model cannot read the image. An image of several consecutive pairs is embedded once.

    Args:
        pairs: read lazily, a batch at a time.
        embed_images: (N,) files' bytes -> (N, width) L2-normalised; raises DataError for an image that it cannot read.
        embed_texts: (N,) texts -> (N, width) L2-normalised.
    """
    remaining = iter(pairs)
    while batch := list(islice(remaining, _PAIRS_AT_ONCE)):
        images = list(dict.fromkeys(data for _, data, _ in batch))
        embedded = dict(zip(images, _embedded(images, embed_images), strict=True))
        texts = embed_texts([text for _, _, text in batch])
        for (name, data, _), text in zip(batch, texts, strict=True):
            image = embedded[data]
            yield name, None if image is None else round(float(image @ text), 4)


def _embedded(images: list[bytes], embed_images: EmbedImages) -> list[NDArray[np.float32] | None]:
    try:
        return list(embed_images(images))
    except DataError:
        if len(images) == 1:
            return [None]
        half = len(images) // 2  # one of the images cannot be read: find it
        return _embedded(images[:half], embed_images) + _embedded(images[half:], embed_images)


#: Columns with few different values, or mostly null.
_DICTIONARY = ["reason", "reasons.list.element", "language", "shard", "opted_out", "status", "twin"]
#: Columns by which readers find row groups.
_WITH_STATISTICS = ["key", "shard"]
#: The verdicts' columns that a file shows, or that the others depend on.
_JUDGED = ["num_texts", "num_images", "rare_ngram", "mask"]
#: The images' columns that a file shows.
_OF_IMAGES = [name for name in IMAGES.names if name in KNOWN_IMAGES.names]
#: The pairs' columns that a file shows; the others are only for the SQL.
_SHOWN = [name for name in PAIRS.names if name != "row_number" and not name.endswith("_hash")]


def write_decisions(work: FilterWork, out: Path, item: NumberedShard) -> None:
    """Writes `decisions`, `facts` and `known_images` (KNOWN_IMAGES) of a shard."""
    index, shard = item
    known = _known(work.rows("judged/verdicts", index, ["row_number", *_JUDGED]), work.rows("decided/decided", index))
    pairs = pq.ParquetFile(work.measured(shard, "pairs"), pre_buffer=False).read(_SHOWN, use_threads=False)
    images = pq.ParquetFile(work.measured(shard, "images"), pre_buffer=False).read(_OF_IMAGES, use_threads=False)
    masks = known["mask"].combine_chunks()
    pairs = _with_languages(pairs, pc.equal(masks, 0))
    write_table(_images(images, known), out / "known_images.parquet")
    for table, rows in (
        (filtered.FACTS, _facts(shard.name, pairs, known)),
        (filtered.DECISIONS, _decisions(pairs, masks)),
    ):
        with _writer(out / f"{table}.parquet", rows.schema) as writer:
            writer.write_table(rows, filtered.ROWS_AT_ONCE)


def _with_languages(pairs: pa.Table, keep: pa.BooleanArray) -> pa.Table:
    """Guesses the languages of kept pairs, unless a rule needed them all.

    Guessing all would take a quarter of the time.
    """
    column = pairs["language"].combine_chunks()
    missing = pc.and_(keep, pc.is_null(column))
    guessed = languages(pairs["text"].filter(missing).to_pylist())
    column = pc.replace_with_mask(column, missing, pa.array(guessed, pa.string()))
    return pairs.set_column(pairs.schema.get_field_index("language"), PAIRS.field("language"), column)


def _known(verdicts: pa.Table, decided: pa.Table) -> pa.Table:
    """The verdicts on a shard's pairs, updated by later decisions on some of these pairs."""
    rows = decided["row_number"].to_numpy() % MAX_ROWS
    mask = verdicts["mask"].to_numpy().copy()
    mask[rows] = decided["mask"].to_numpy()
    row_in_decided = np.full(len(verdicts), -1)
    row_in_decided[rows] = np.arange(len(rows))
    later = decided.drop_columns(["row_number", "mask"]).take(pa.array(row_in_decided, mask=row_in_decided < 0))
    columns = {name: verdicts[name] for name in _JUDGED} | {"mask": mask}
    return pa.table(columns | {name: later[name] for name in later.column_names})


def _images(images: pa.Table, known: pa.Table) -> pa.Table:
    first_pair = pa.array(images["row_number"].to_numpy() % MAX_ROWS)
    decided = known.select(["nsfw_score", "num_texts"]).take(first_pair)
    columns = [decided[name] if name in decided.column_names else images[name] for name in KNOWN_IMAGES.names]
    return pa.table(columns, schema=KNOWN_IMAGES)


def _decisions(pairs: pa.Table, masks: pa.Int64Array) -> pa.Table:
    distinct = masks.dictionary_encode()
    codes = [codes_of(mask) for mask in distinct.dictionary.to_pylist()]
    columns = {name: pairs[name] for name in ("key", "image_id", "image_key", "text", "language")}
    columns |= {
        "keep": pc.equal(masks, 0),
        "reason": pa.array([one[0] if one else None for one in codes], pa.string()).take(distinct.indices),
        "reasons": pa.array(codes, pa.list_(pa.string())).take(distinct.indices),
    }
    schema = filtered.DECISIONS_SCHEMA
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _facts(shard: str, pairs: pa.Table, known: pa.Table) -> pa.Table:
    columns = {name: known[name] for name in known.column_names} | {name: pairs[name] for name in pairs.column_names}
    columns["shard"] = pa.array([shard] * len(pairs), pa.string())
    for name in ("num_evaluation_sets", "twin"):  # by embedding, or else by hash
        columns[name] = pc.coalesce(known[name], pairs[name])
    schema = filtered.FACTS_SCHEMA
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    options = {"use_dictionary": _DICTIONARY, "write_statistics": _WITH_STATISTICS, "compression": "zstd"}
    return pq.ParquetWriter(path, schema, **options)


def decide(engine: Engine, work: FilterWork, executor: Executor, shards: Shards) -> None:
    """Makes `decided`, `written` of each shard, and images.parquet."""
    engine.view("twins", work.folder / "twins/twins.parquet")
    work.work.make("decided", partial(_write_decided, engine, work, executor, shards))
    step = Step("written", write_decisions, "filter: shards, decisions", ["measured/{}"])
    work.run(step, shards, executor)
    if (work.folder / filtered.IMAGES).exists():
        return
    say("filter: SQL, images")
    engine.view("known_images", work.folder / "written/*/known_images.parquet")
    engine.table("later_copies", tables.LATER_COPIES)
    in_order = engine.scratch / "images_in_order.parquet"
    engine.write(tables.IMAGES_IN_ORDER, in_order, "none")
    with replaced(work.folder / filtered.IMAGES, on_disk=False) as beside:
        _write_images(in_order, beside)


def _write_images(table: Path, path: Path) -> None:
    """Writes the table again, so that its bytes are the same whichever engine has made it."""
    with pq.ParquetFile(table, pre_buffer=False) as file, _writer(path, file.schema_arrow.remove_metadata()) as writer:
        for batch in file.iter_batches(ROWS_AT_ONCE):  # whichever row groups the engine has made
            writer.write_table(pa.Table.from_batches([batch]).replace_schema_metadata())


def _write_decided(engine: Engine, work: FilterWork, executor: Executor, shards: Shards, out: Path) -> None:
    """Writes the final verdicts on the pairs of candidates."""
    say("filter: SQL, decisions")
    for name in ("verdicts", "candidates"):
        engine.view(name, work.folder / f"judged/{name}.parquet")
    engine.view("scored", work.folder / "scored/*/scored.parquet")
    source = f"({tables.network_verdicts(work.config)})"
    model = work.config.similarity_model
    if model is not None:
        engine.table("network_verdicts", f"SELECT * FROM {source} AS source")
        work.work.make("remaining", lambda new: engine.write(tables.REMAINING, new / "remaining.parquet"))
        step = Step("compared", partial(compare_texts, model), "filter: shards, image-text similarity", ["measured/{}"])
        work.run(step, shards, executor)
        engine.view("similarities", work.folder / "compared/*/similarities.parquet")
        source = "network_verdicts"
    share, last = work.config.keep_similarity_share, (-2.0, -1)
    if share is not None:
        similarity, number = tables.worst_of_best(engine.rows(tables.PAIRS_PER_SIMILARITY), share)
        [(row_number,)] = engine.rows(tables.last_of_best(similarity, number))
        last = similarity, row_number
    source = f"({tables.similarity_verdicts(work.config, source, last)})"
    if work.config.drop_repeats is not None:
        engine.table("similarity_verdicts", f"SELECT * FROM {source} AS source")
        source = "similarity_verdicts"
    engine.write(tables.decided(work.config, source), out / "decided.parquet", "none")
