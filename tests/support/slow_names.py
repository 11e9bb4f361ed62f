"""Asks for names in a network of its own whose name server knows `*.fast`, and never answers for any other name.

Run by a test, in new user, mount and network namespaces: `unshare -rmn python -m tests.support.slow_names NUM FOLDER`.
Prints how many addresses ended with which error, by kind of name.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from align.ingest.download import Downloader
from tests.support.downloads import config


def main(count, folder):
    """Asks for so many names, every other of which is slow."""
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:60 attempts:1\n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    threading.Thread(target=_answer, args=(server,), daemon=True).start()
    outcomes = Counter()
    limits = config(num_retries=0, connect_timeout_s=8.0, timeout_s=60.0, max_connections=256)
    with Downloader(limits) as downloader:
        for fetched in downloader.fetch(f"http://{i}.{'fast' if i % 2 else 'slow'}/x.jpg" for i in range(count)):
            outcomes[f"{urlsplit(fetched.url).hostname.partition('.')[2]} {fetched.error}"] += 1
        print(json.dumps(outcomes), flush=True)
        os._exit(0)  # libcurl would wait for the slow names


def _answer(server):
    while True:
        query, client = server.recvfrom(4096)
        end = query.index(b"\0", 12) + 5  # of the question: name, type, class
        question = query[12:end]
        if b"\x04fast" not in question:
            continue
        is_ipv4 = question[-3:-2] == b"\x01"
        head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_ipv4 else b"\0\0") + b"\0\0\0\0"
        address = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_ipv4 else b""
        server.sendto(head + question + address, client)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
