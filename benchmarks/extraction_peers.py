"""What extraction is compared with; runs in the peers' environment and imports nothing of ours.

    python extraction_peers.py FILE SMALL_FILE

prints JSON: CPU seconds of reading the file once (imports not counted), peak memory, and a digest of the pairs. It is
FastWARC, and BeautifulSoup on lxml with our rules, written as one writes such a thing.
"""

import hashlib
import json
import re
import sys
import time
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


def main() -> None:
    file, small = map(Path, sys.argv[1:])
    soup(small)  # imports and caches
    start = time.process_time()
    pairs = soup(file)
    cpu_s = time.process_time() - start
    digest = hashlib.sha256("\n".join(f"{url}\t{text}" for url, text in pairs).encode()).hexdigest()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"cpu_s": cpu_s, "peak_bytes": int(peak.split()[1]) << 10, "num": len(pairs), "digest": digest}))


if __name__ == "__main__":
    main()
