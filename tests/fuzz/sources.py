"""Fuzzed: the sources of ingest. Each target writes the input as a file and reads it as ingest does."""

import codecs
import io
import zlib
from collections import Counter
from contextlib import suppress
from importlib import import_module

PAGE = "https://example.org/a/b/page.html"
_TEXT_FROM = ("alt", "figcaption", "title", "aria-label")
#: The module of a source, where its name is another one.
_MODULES = {"warc": "archives.warc", "wat": "archives.wat"}
#: Files and responses of one batch that are read back.
_NUM_READ = 20
_WAT_RECORD = (
    "WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {}\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)


def ingest_config(source):
    from align.config.ingest import IngestConfig
    from tests.support.params import load_params

    return load_params(overrides=[f"ingest.source={source}"]).section(IngestConfig)


def _scan(source):
    """Reads a whole source, as ingest does: every row, and the bytes of the first few pictures."""
    from align.config.infrastructure import StoreConfig
    from align.errors import DataError
    from align.ingest.limits import TooLarge
    from align.ingest.sources import open_source
    from align.services.files.files import StoreFiles
    from tests.support.params import load_params

    import_module(f"align.ingest.sources.{_MODULES.get(source, source)}")  # open_source imports it late
    config = ingest_config(source)
    files = StoreFiles(load_params().section(StoreConfig))

    def scan(location):
        read = []
        with suppress(DataError):
            opened = open_source(config, str(location), files)
            for file in opened.files:
                for batch in opened.scan(file, Counter()):
                    for row in batch.select(["file", "offset"]).slice(0, _NUM_READ).to_pylist():
                        if row["file"] is not None:
                            with suppress(DataError, TooLarge):
                                read.append(opened.read(row["file"], row["offset"]))
        return read

    return scan


def _scan_file(scan, path, data):
    path.write_bytes(data)
    scan(path)
    path.unlink()


def page(folder):
    from align.ingest.limits import TooLarge
    from align.ingest.sources.pages import page_images

    def run(data):
        with suppress(TooLarge):
            page_images(data, PAGE, None, _TEXT_FROM)

    return run


def warc(folder):
    scan = _scan("warc")
    packed = {b"\x1f\x8b": ".gz", b"\x28\xb5": ".zst", b"\x5d\x2a": ".zst"}

    def run(data):
        _scan_file(scan, folder / f"a.warc{packed.get(data[:2], '')}", data)

    return run


def wat(folder):
    scan = _scan("warc")

    def run(data):
        _scan_file(scan, folder / "a.warc.wat", _WAT_RECORD.format(PAGE, len(data)).encode() + data + b"\r\n\r\n")

    return run


def tar(folder):
    scan = _scan("shards")
    return lambda data: _scan_file(scan, folder / "00000.tar", data)


def tar_table(folder):
    """The table next to a tar."""
    from align.formats.tar import TarWriter

    scan = _scan("shards")
    tar = io.BytesIO()
    writer = TarWriter(tar)
    writer.add(("000000000.jpg", b"\xff\xd8 a picture"), ("000000001.jpg", b"\xff\xd8 another one"))
    writer.close()

    def run(data):
        (folder / "00000.parquet").write_bytes(data)
        _scan_file(scan, folder / "00000.tar", tar.getvalue())

    return run


def table(folder):
    """Parquet, or text whose kind is told from its first characters; also gzipped."""
    scan = _scan("url_table")

    def run(data):
        packed = data.startswith(b"\x1f\x8b")
        with suppress(zlib.error):
            head = zlib.decompressobj(31).decompress(data, 64) if packed else data[:64]
            _scan_file(scan, folder / f"a.{_table_kind(head)}{'.gz' if packed else ''}", data)

    return run


def evaluation_table(folder):
    """The same bytes as a table of an evaluation set; its pictures do not exist."""
    from align.config.suite import SuiteSet
    from align.errors import DataError
    from align.formats.evaluation_sets.table import read
    from tests.support.suites import local_files

    files = local_files()
    usual = {}

    def run(data):
        packed = data.startswith(b"\x1f\x8b")
        with suppress(zlib.error):
            head = zlib.decompressobj(31).decompress(data, 64) if packed else data[:64]
            file = folder / f"a.{_table_kind(head)}{'.gz' if packed else ''}"
            file.write_bytes(data)
            for task in ("retrieval", "zero_shot"):
                for columns in (usual, {"picture": "url", "text": "caption", "label": "caption"}):
                    about = {"name": "a", "path": str(file), "format": "table", "tasks": [task], "columns": columns}
                    with suppress(DataError):
                        read(SuiteSet.model_validate(about), files)

    return run


def _table_kind(head):
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip(codecs.BOM_UTF8 + b" \r\n")[:1] in (b"{", b"["):
        return "json"
    if head[:4] in (b"http", b"//"):
        return "txt"
    return "tsv" if b"\t" in head else "csv"


def folder_table(folder):
    """The table of a folder of pictures, by both of the sources that read files from beside it."""
    scans = [_scan(source) for source in ("folder", "url_table")]
    photos = folder / "photos"
    (photos / "images").mkdir(parents=True)
    (folder / "outside.png").write_bytes(b"not in the folder of the pictures")
    (photos / "link.png").symlink_to(folder / "outside.png")
    (photos / "images/inside.png").write_bytes(b"in it")

    def run(data):
        table = photos / f"a.{_table_kind(data[:64])}"
        table.write_bytes(data)
        for scan in scans:
            for read in scan(photos):
                assert read != (folder / "outside.png").read_bytes(), "a file outside the folder was read"
        table.unlink()

    return run


def coco(folder):
    scan = _scan("coco")
    return lambda data: _scan_file(scan, folder / "captions_val2014.json", data)
