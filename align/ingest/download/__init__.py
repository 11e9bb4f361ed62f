"""Downloads pictures from the web: fast, polite, and safe against hostile servers.

downloader   the loop: starts requests and handles their outcomes
exchange     what an answer means, and how many bytes of answers are in memory
hosts        which request comes next: the queue of each host, its limits, when it may be asked again
slow_hosts   what is said of hosts that get too many requests

One request on libcurl, the addresses that may be asked, and what a failure means are in `align.web`.
"""

from __future__ import annotations

from align.ingest.download.downloader import Downloader, Fetched
from align.ingest.download.hosts import Ask

__all__ = ["Ask", "Downloader", "Fetched"]
