"""What the downloader's tests share: settings, a server, a picture."""

from __future__ import annotations

from typing import Any

import pycurl

from align.config.download import DownloadConfig
from align.ingest.download import Downloader, Fetched
from tests.support.params import load_params
from tests.support.web_server import WebServer

PICTURE = b"\xff\xd8" + bytes(range(256)) * 40


def config(**changes: Any) -> DownloadConfig:
    """The section of params.yaml, with short waits, long time-outs, and loopback allowed."""
    changed = {
        "connect_timeout_s": 10.0, "timeout_s": 10.0, "deadline_s": 60.0, "backoff_s": 0.02, "num_retries": 2,
        "max_image_bytes": 1 << 20, "obey_robots": False, "allow_networks": ("127.0.0.0/8",),
    }  # fmt: skip
    section = load_params().section(DownloadConfig)
    return section.model_copy(update={**changed, **changes})


def fetch_one(url: str, **changes: Any) -> Fetched:
    with Downloader(config(**changes)) as downloader:
        (fetched,) = downloader.fetch([url])
    return fetched


def any_host(server: WebServer) -> dict[int, Any]:
    """libcurl options under which every name leads to this server."""
    return {pycurl.CONNECT_TO: [f"::127.0.0.1:{server.port}"]}
