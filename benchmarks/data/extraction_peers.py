"""What extraction is compared with; runs in the peers' environment and imports nothing of ours.

    python extraction_peers.py soup|cc2dataset FILE

prints JSON: CPU seconds of reading the file once (imports not counted), peak memory, and a digest of the pairs.
`soup` is BeautifulSoup on lxml with our rules, written as one writes such a thing; `cc2dataset` is that tool's own
function for WAT files.
"""

import hashlib
import json
import re
import sys
import time
import types
from pathlib import Path
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

_SAFE = "!#$%&'()*+,/:;=?@[]~"
_LAZY_SRC = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-echo")
_LAZY_SRCSET = ("data-srcset", "data-lazy-srcset", "data-original-set")


def soup(file: Path) -> list[tuple[str, str]]:
    from bs4 import BeautifulSoup
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    pairs = []
    with file.open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            if record.http_headers.status_code != 200 or record.http_content_type != "text/html":
                continue
            url = record.headers["WARC-Target-URI"]
            page = BeautifulSoup(record.reader.read(), "lxml", from_encoding=record.http_charset)
            base = page.find("base", href=True)
            base_url = urljoin(url, base["href"]) if base else url
            for image in page.find_all("img"):
                source = _source(image)
                if source:
                    pairs.append((_canonical(urljoin(base_url, source)), _text(image)))
    return pairs


def _source(image):
    lazy = next((image[name] for name in _LAZY_SRC if re.search("[./]", image.get(name, ""))), None)
    best = (lazy or image.get("src", "")).strip()
    sets = [next((image[name] for name in (*_LAZY_SRCSET, "srcset") if image.get(name)), "")]
    picture = image.find_parent("picture")
    if picture is not None:
        sets += [source.get("data-srcset") or source.get("srcset") or "" for source in picture.find_all("source")]
    size = (1, 1.0) if best else (0, 0.0)
    for srcset in sets:
        for url, number, unit in re.findall(r"(\S+[^\s,])(?:\s+([\d.]+)([wx]))?\s*(?:,|$)", srcset):
            candidate = (2 if unit == "w" else 1, float(number or 1))
            if candidate > size:
                best, size = url, candidate
    return best


def _text(image):
    for place in ("alt", "figcaption", "title", "aria-label"):
        if place == "figcaption":
            figure = image.find_parent("figure")
            caption = figure.find("figcaption") if figure is not None else None
            text = caption.get_text() if caption is not None else ""
        else:
            text = image.get(place, "")
        if text.strip():
            return text
    return ""


def _canonical(url):
    parts = urlsplit(urldefrag(url.strip())[0])
    host = parts.netloc.lower().removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, "\n"))
    path = parts.path or ("/" if host else "")
    return urlunsplit((parts.scheme, host, quote(path, safe=_SAFE), quote(parts.query, safe=_SAFE), ""))


def cc2dataset(file: Path) -> list[tuple[str, str]]:
    # its module imports Spark for what is not compared here
    for name in ("pyspark", "pyspark.sql", "pyspark.sql.functions", "cc2dataset.spark_session_builder"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["pyspark"].SparkContext = sys.modules["pyspark.sql"].SparkSession = object
    sys.modules["pyspark.sql.functions"].rand = sys.modules["cc2dataset.spark_session_builder"].build_spark_session = (
        None
    )
    from cc2dataset.main import extract_documents_from_wat

    with file.open("rb") as stream:
        return [(link["url"], link["alt"]) for link in extract_documents_from_wat(stream, "image")]


def main() -> None:
    function, file = {"soup": soup, "cc2dataset": cc2dataset}[sys.argv[1]], Path(sys.argv[2])
    function(Path(sys.argv[3]))  # a small file: imports and caches
    start = time.process_time()
    pairs = function(file)
    cpu_s = time.process_time() - start
    digest = hashlib.sha256("\n".join(f"{url}\t{text}" for url, text in pairs).encode()).hexdigest()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"cpu_s": cpu_s, "peak_bytes": int(peak.split()[1]) << 10, "num": len(pairs), "digest": digest}))


if __name__ == "__main__":
    main()
