"""Small files that unpack to gigabytes, and a child process with little memory that reads them."""

import gzip
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import warm

MIB = 1 << 20


def parquet_bomb(path, num_rows, encoding="RLE_DICTIONARY", num_bytes=MIB):
    """A table of img2dataset whose captions are all the same text, stored once (but for PLAIN)."""
    text = pa.array(["three words " + "a" * num_bytes])
    captions = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), text)
    if encoding != "RLE_DICTIONARY":
        captions = text.take(captions.indices)
    keys = [f"{row:09d}" for row in range(num_rows)]
    columns = {"url": [f"http://x/{key}.png" for key in keys], "caption": captions, "key": keys}
    columns["status"] = ["failed_to_download"] * num_rows
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        store_schema=False,
        write_statistics=False,
        use_dictionary=encoding == "RLE_DICTIONARY",
        column_encoding=None if encoding == "RLE_DICTIONARY" else {"caption": encoding},
        dictionary_pagesize_limit=1 << 30,
    )
    return path


def repeated_value(path, column, value, **others):
    """A table in which 64 rows have the same large value, stored once."""
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([value]))
    options = {"store_schema": False, "write_statistics": False, "dictionary_pagesize_limit": 1 << 30}
    table = pa.table({column: rows} | {name: [one] * 64 for name, one in others.items()})
    pq.write_table(table, path, compression="zstd", **options)
    assert path.stat().st_size < 100_000
    return path


def one_long_line(path, head, num_mib, tail):
    """A gzipped file with a line of that many MiB of `a` between two pieces."""
    path.write_bytes(gzip.compress(head) + gzip.compress(b"a" * MIB) * num_mib + gzip.compress(tail))
    return path


def with_little_memory(code, *arguments, mib):
    """What Python code prints, in a child process that may allocate `mib` beyond what it has after its imports.

    Of what it has, some 150 MiB may be free, as in any fork of `warm`.
    """
    lines = code.splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    rest = [line for line in lines if line not in imports]
    bound = ["from align.durable.memory import allocating_at_most", f"with allocating_at_most({mib} << 20):"]
    program = "\n".join([*imports, "import sys", *bound, *(f"    {line}" for line in rest)])
    command = [str(warm.commands() / "python"), "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


#: A program for `with_little_memory` that reads a table of addresses.
SCAN_TABLE = """
import json
from collections import Counter
from tests.support.params import load_params
from align.config.ingest import IngestConfig
from align.config.infrastructure import StoreConfig
from align.ingest.sources.url_table import UrlTable
from align.services.files.files import StoreFiles
params = load_params()
table = UrlTable(params.section(IngestConfig), sys.argv[1], StoreFiles(params.section(StoreConfig)))
lengths = [len(text) for batch in table.scan(sys.argv[1], Counter()) for text in batch["text"].to_pylist()]
print(len(lengths), *sorted(set(lengths)))
"""
