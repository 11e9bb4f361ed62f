"""What is fuzzed. A target is made once, with an empty folder for its files, and then takes any bytes.

It suppresses the error that its function documents for bad input, and nothing else: every other exception is a find.
Imports are inside, so that `engine.py` can instrument them, and a target needs only its own.
"""

from contextlib import suppress
from functools import partial
from urllib.parse import urljoin

from tests.fuzz.service import service
from tests.fuzz.sources import (
    PAGE,
    coco,
    evaluation_table,
    folder_table,
    ingest_config,
    page,
    table,
    tar,
    tar_table,
    warc,
    wat,
)


def _picture(folder):
    from align.pairs.picture import PictureError, decode, read_header, shrink

    max_pixels = ingest_config("warc").max_image_pixels

    def run(data):
        with suppress(PictureError):
            read_header(data)
        with suppress(PictureError):
            assert decode(data, max_pixels=max_pixels).mode == "RGB"
        with suppress(PictureError):
            shrink(data, 64, 90, max_pixels)

    return run


def _preprocess(folder):
    from align.errors import DataError
    from align.model.preprocess import decode

    def run(data):
        with suppress(DataError):
            assert decode(data, 64).shape == (64, 64, 3)

    return run


def _text(folder):
    import pyarrow as pa

    from align.filter.words import text_facts
    from align.pairs import languages
    from align.pairs import text as texts

    def run(data):
        written = data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("utf-8", "replace")
        text = texts.normalise(written)
        assert texts.normalise(text) == text, "normalised twice is another text"
        languages.languages([text])
        num_emails, num_phones = texts.personal_data(text)
        texts.mask_personal_data(text)
        facts = text_facts(pa.array([text], pa.string()))  # the same facts, on arrays
        assert facts.num_unigrams.tolist() == [len(texts.words(text))], "text_facts and words count differently"
        assert facts.num_words.tolist() == [texts.num_words(text)], "text_facts and num_words count differently"
        assert (facts.num_emails[0], facts.num_phones[0]) == (num_emails, num_phones), "other personal data"
        assert facts.is_filename[0] == texts.is_filename(text), "text_facts and is_filename differ"

    return run


def _is_text(data):
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _url(folder):
    """A base in the first line; the rest is an address, and a value of Retry-After."""
    from align.pairs.urls import Resolver, canonical_or_as_is, canonical_url, identity
    from align.web.addresses import target_of
    from align.web.failure import of_status

    def run(data):
        base, _, source = data.decode("utf-8", "surrogatepass" if _is_text(data) else "replace").partition("\n")
        resolver = Resolver(base)
        canonical_or_as_is(source)
        identity(source)
        with suppress(ValueError):
            target_of(source)
        of_status(503, source, 0.0)
        resolver.resolve(source)
        simple = resolver.simply_joined(source)
        with suppress(ValueError):  # a base that is no URL
            joined = urljoin(base, source)
            assert simple in (None, canonical_url(joined)), "the two ways to join give two spellings"

    return run


def _robots(folder):
    """A robots.txt; its last line is an address to ask about and a header."""
    from align.ingest.robots import opt_out, rules_for

    def run(data):
        path = data.rpartition(b"\n")[2].decode("utf-8", "replace")
        for token in ("align-ingest", "*"):
            rules = rules_for(token, data, ("gptbot",))
            for url in ("https://example.org/", "https://example.org/a/b.png?c=%2f", f"https://example.org/{path}"):
                rules.refusal(url)
            opt_out([path], token)

    return run


def _policy(folder):
    from align.errors import FormatError
    from align.formats.policy import OPTED_OUT, read_opted_out, write_opted_out

    def run(data):
        (folder / OPTED_OUT).write_bytes(data)
        with suppress(FormatError):
            opted_out = read_opted_out(folder)
            opted_out.matches(PAGE, "http://[bad/", "0" * 64)
            write_opted_out(folder, opted_out)
            assert read_opted_out(folder).entries == opted_out.entries, "written and read again, it differs"

    return run


def _form(folder):
    """A request as JSON, what a run makes of its overrides, and its check of all values."""
    import shutil

    from pydantic import ValidationError

    from align.config.params import chosen_values, write_params
    from align.config.sections import SECTIONS
    from align.errors import ConfigError
    from flows.request import Request, settled
    from tests.support import ROOT
    from tests.support.params import PARAMS_FILE, load_params

    text = PARAMS_FILE.read_bytes()
    (folder / "params.yaml").write_bytes(text)
    shutil.copy(ROOT / "dvc.yaml", folder)

    def run(data):
        with suppress(ConfigError, UnicodeDecodeError):
            lines = data.decode().splitlines()[:8]
            chosen_values(load_params(folder / "params.yaml", lines), lines)
        try:
            request = Request.model_validate_json(data)
        except ValidationError:
            return
        (folder / "params.yaml").write_bytes(text)
        with suppress(ConfigError):
            write_params(folder / "params.yaml", request.overrides)
            params = load_params(folder / "params.yaml")
            for section in SECTIONS.values():
                params.section(section)
        (folder / "params.yaml").write_bytes(text)
        with suppress(ConfigError):
            settled(folder, request.model_copy(update={"ref": None}))

    return run


def _json_file(folder):
    """Every small JSON file of the project; most fit none of them."""
    from align.errors import DataError
    from align.formats.acceptances import read_acceptances
    from align.formats.drift_reference import read_reference
    from align.formats.raw import read_raw_manifest
    from align.formats.shards import read_manifest
    from align.formats.verdict import require_passed
    from align.lineage.take_down.purge_raw import stored_tars

    files = (
        ("accepted.json", read_acceptances), ("reference.json", read_reference), ("manifest.json", read_manifest),
        ("manifest.json", read_raw_manifest), ("manifest.json", stored_tars),
        ("verdict.json", partial(require_passed, data="0" * 64, where=folder)),
    )  # fmt: skip

    def run(data):
        from align.errors import GateError

        for name, read in files:
            (folder / name).write_bytes(data)
            with suppress(DataError, GateError):
                read(folder)

    return run


def _model_config(folder):
    from align.errors import DataError
    from align.formats.model_folder import CONFIG, library_model, read_config

    def run(data):
        (folder / CONFIG).write_bytes(data)
        library_model(folder)
        with suppress(DataError):
            read_config(folder)

    return run


def _weights(folder):
    from align.errors import DataError
    from align.formats.model_folder import WEIGHTS, read_weights

    def run(data):
        (folder / WEIGHTS).unlink(missing_ok=True)  # the last one may be mapped into memory
        (folder / WEIGHTS).write_bytes(data)
        with suppress(DataError):
            read_weights(folder)

    return run


def _tokenizer(folder):
    from align.errors import DataError
    from align.formats.model_folder import TOKENIZER
    from align.model.tokenizer import TextTokenizer

    def run(data):
        (folder / TOKENIZER).write_bytes(data)
        with suppress(DataError):
            TextTokenizer.load(folder, 16)

    return run


def _vectors(folder):
    """An index of 40 vectors, 8 wide; the rows of an approximate one are right."""
    import numpy as np

    from align.errors import CorruptError
    from align.services.vector_index import VectorIndex

    file = folder / "vectors.faiss"
    np.save(file.with_suffix(".npy"), np.eye(40, 8, dtype=np.float16))
    queries = np.eye(3, 8, dtype=np.float32)
    allowed = np.arange(40) % 2 == 0

    def run(data):
        file.write_bytes(data)
        with suppress(CorruptError):
            index = VectorIndex.load(file)
            if index.width == 8 and len(index) == 40:  # index.json says so, and is compared
                index.search(queries, 1)
                index.search(queries, 5, allowed)
                index.vector(39)

    return run


def _items(folder):
    """The table of an index."""
    from align.errors import CorruptError, DataError
    from align.formats.indexed_images import ITEMS, IndexedImages

    def run(data):
        (folder / ITEMS).write_bytes(data)
        with suppress(CorruptError):
            items = IndexedImages.load(folder, 40)
            assert len(list(items)) == len(list(items.texts())) == len(items)
            with suppress(DataError):  # a condition that does not suit its column, or no such image
                for name in items.columns:
                    assert len(items.matching(("train",), ("red", "c++"), (f"{name}=1",))) == len(items)
                items.addresses(items.position("000000001"))
            items.listed(["a"], lambda url, page: False)

    return run


TARGETS = {
    make.__name__.removeprefix("_"): make
    for make in (
        _picture, _preprocess, page, warc, wat, tar, tar_table, table, folder_table, evaluation_table,
        coco, _text, _url, _robots, _policy, _form, _json_file, _model_config, _weights, _tokenizer, _vectors,
        _items, service,
    )
}  # fmt: skip
